"""Random numbers of a fine-tuning: seeded by its own numbers, and the caller's left as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


def own_generator(model: nn.Module) -> Any:
    """Keep the caller's random numbers as they are, on every device of the network."""
    return torch.random.fork_rng(devices=sorted({p.device.index for p in model.parameters() if p.is_cuda}))


def seed(*numbers: int) -> None:
    """Seed torch by a few numbers; any other of them, another seed."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
