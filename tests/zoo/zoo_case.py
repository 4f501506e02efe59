"""What one architecture of the table is: how it is built, on what it is run, and which of its rows count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WORDS, LENGTHS = 40, (7, 4, 3, 6)


@dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    family: str
    build: Callable[[], nn.Module]
    batch: Any
    mask: str | Mapping[str, str] | None = None
    """As `RowRule` takes it: a key of the batch, or a key for each pattern of layers."""
    generates: bool = False

    def network(self) -> nn.Module:
        """Return the network in double precision, with weights that make each layer matter."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.build().eval().double()
            for parameter in net.parameters():
                if parameter.ndim > 1:
                    parameter.data.normal_(std=0.3)
        return net


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def words(*shape: int, seed: int = 1) -> torch.Tensor:
    """Tokens, none of them special."""
    return torch.randint(3, WORDS, shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, 0 where there is padding on the right, and their mask."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return words(*mask.shape, seed=seed) * mask, mask
