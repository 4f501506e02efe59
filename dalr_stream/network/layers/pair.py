"""The pair of layers that takes the place of one, and what its parent may still read of the layer that it replaced.

Many networks look at a layer beside calling it: T5 casts to `wo.weight.dtype`, Whisper multiplies by `conv1.stride[0]`,
adapters read `in_features`. A plain `nn.Sequential` has none of these; a `FactorPair` is a Sequential that has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def _setting(part: int, name: str) -> Any:
    """Return a property that reads the setting `name` of one of the two layers; AttributeError where it has none."""
    return property(lambda pair: getattr(pair[part], name))


class FactorPair(nn.Sequential):
    """Two layers in the place of one: to `rank` features without bias, then to the outputs.

    It is called, traced, exported, saved and trained as the `nn.Sequential` that it is. For parents that read a layer
    beside calling it, it has the settings of the one that it replaced: those of a linear layer, or of a convolution.
    """

    in_features, out_features = _setting(0, "in_features"), _setting(1, "out_features")
    in_channels, out_channels = _setting(0, "in_channels"), _setting(1, "out_channels")
    kernel_size, stride, dilation = _setting(0, "kernel_size"), _setting(0, "stride"), _setting(0, "dilation")
    padding, padding_mode, groups = _setting(0, "padding"), _setting(0, "padding_mode"), _setting(0, "groups")
    bias = _setting(1, "bias")

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        """Pair two linear layers, or a convolution and a 1 x 1 convolution after it."""
        super().__init__(down, up)

    @property
    def weight(self) -> torch.Tensor:
        """The old weight's shape, dtype and device, in no memory; its numbers are NaN.

        Whoever computes with it, in place of calling the pair, gets NaN and not numbers that are wrong in silence.
        """
        parts: Any = self
        down, up = parts[0].weight, parts[1].weight
        return torch.full((), math.nan, dtype=down.dtype, device=down.device).expand(up.shape[0], *down.shape[1:])
