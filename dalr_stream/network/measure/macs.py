"""Multiply-adds that a network's layers really compute, counted while it runs.

A hook on each linear layer, convolution or Conv1D of transformers sees its output: every position of it took one
multiply-add for each weight that reaches it, which is the whole weight divided by the outputs. So stride, padding,
dilation, groups, tokens and a layer called twice are all counted as they are. What else a network does (attention
scores, normalisation, pooling, biases) is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalr_stream.network.layers.kinds import CONVOLUTIONS, matrix_of, why_not


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer: what it read, and what that cost."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    macs: int

    def inputs(self) -> torch.Tensor:
        """Return made-up inputs of the same kind, the same ones each time; no global seed is touched."""
        numbers = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        return numbers.to(device=self.device, dtype=self.dtype)


class Calls:
    """What the layers of one network were called with since it is watched."""

    def __init__(self) -> None:
        self.layers: dict[str, list[Call]] = {}
        """Name -> its calls, in the order in which the layers were first called; layers never called are not there."""
        self.samples = 0
        """That the network itself was called with."""

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds of each layer, over all its calls."""
        return {name: sum(call.macs for call in calls) for name, calls in self.layers.items()}


@contextmanager
def watched_calls(model: nn.Module) -> Iterator[Calls]:
    """Note every call of the network and of its layers; the hooks are gone when the block ends."""
    calls = Calls()

    def entered(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
        calls.samples += tensors[0].shape[0] if tensors and tensors[0].ndim else 0

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(entered, with_kwargs=True).remove)
        for name, module in model.named_modules():
            if is_counted(module):
                stack.callback(_noting(module, calls.layers, name).remove)
        yield calls


def is_counted(module: nn.Module) -> bool:
    """Tell whether a module's multiply-adds are counted; a convolution's of any number of groups are."""
    return isinstance(module, CONVOLUTIONS) or why_not(module) is None


def _noting(module: nn.Module, layers: dict[str, list[Call]], name: str) -> torch.utils.hooks.RemovableHandle:
    weight = matrix_of(module)

    def left(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: torch.Tensor) -> None:
        read = arguments[0] if arguments else next(iter(keywords.values()))
        macs = output.numel() // weight.shape[0] * weight.numel()
        layers.setdefault(name, []).append(Call(tuple(read.shape), read.dtype, read.device, macs))

    return module.register_forward_hook(left, with_kwargs=True)
