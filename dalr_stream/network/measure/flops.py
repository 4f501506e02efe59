"""Floating-point operations of a forward pass, counted by torch: products, convolutions and attention.

On the meta device nothing is computed, so that a network that fits nowhere is counted too.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dalr_stream.network.capture.batches import call
from dalr_stream.network.capture.reading import without_gradients


def forward_flops(model: nn.Module, batch: Any) -> int:
    """Return the operations of one pass of a batch, two a multiply-add."""
    counter = FlopCounterMode(display=False)
    with without_gradients(), counter:
        call(model, batch)
    return int(counter.get_total_flops())


def is_on_meta(model: nn.Module) -> bool:
    """Tell whether a network has shapes and no numbers."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
