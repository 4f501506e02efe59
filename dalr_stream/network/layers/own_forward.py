"""Layers with a forward of their own: whether they compute what the class that they come from does."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LARGE = 1000.0
"""Above what layers clamp to."""
ROUNDING_STEPS = 64
"""Of the dtype, relative to the largest output: sums in another order, and a bias that is added afterwards."""


def is_linear(module: nn.Linear) -> bool:
    """Tell whether a layer with a forward of its own gives W x + b, by small and by large numbers.

    Falcon's adds its bias itself, others clamp, round or normalise what they read. Cost: two rows through the layer.
    """
    if module.weight.is_meta or module.training:
        return False
    drawn = torch.randn(2, module.in_features, generator=torch.Generator().manual_seed(0))
    rows = (drawn * torch.tensor([[1.0], [LARGE]])).to(module.weight)
    with torch.no_grad():
        expected = functional.linear(rows, module.weight, module.bias)
        try:
            given = module.forward(rows.clone())
        except Exception:  # noqa: BLE001  # it wants other inputs: whatever it is, it is no linear layer
            return False
    if not isinstance(given, torch.Tensor) or given.shape != expected.shape or given.dtype != expected.dtype:
        return False
    steps = ROUNDING_STEPS * torch.finfo(expected.dtype).eps * expected.abs().amax(dim=1, keepdim=True)
    return bool(((given - expected).abs() <= steps).all())
