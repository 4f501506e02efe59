"""Which layers write into a residual stream: what each gives is added, once a call and unchanged, to another tensor.

Seen on the first samples of a batch (see `capture.additions`), and proved there: all outputs are disturbed, and each
sum moves by what its layer's output moved and the stream before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dalr_stream.network.capture.additions import Additions
from dalr_stream.network.capture.batches import call, few_samples, inputs_copied
from dalr_stream.network.capture.reading import same_draws, without_gradients
from dalr_stream.network.layers.spec import module_of
from dalr_stream.network.structure.proof import ROUNDING, quiet, same

EXAMPLES = 2
"""Samples of the example that are used."""
ROUNDING_UNITS = 16
"""Of the sums' type, where that is coarser than `ROUNDING`: a few additions and products."""


@dataclass(slots=True)
class _Seen:
    """What became of one layer's outputs in one forward pass, call after call."""

    given: list[torch.Tensor] = field(default_factory=list)
    others: list[torch.Tensor] = field(default_factory=list)
    sums: list[torch.Tensor] = field(default_factory=list)
    uses: Counter[str] = field(default_factory=Counter)

    def before(self, other: torch.Tensor) -> None:
        """Keep the stream before the addition."""
        self.others.append(other.clone())

    def after(self, total: torch.Tensor) -> None:
        """Keep the stream after it."""
        self.sums.append(total.clone())

    def otherwise(self, operation: str) -> None:
        """Count another use."""
        self.uses[operation] += 1

    @property
    def reason(self) -> str:
        """Why the layer does not write into a stream; empty where it does."""
        calls, times, first = len(self.given), len(self.others), next(iter(self.uses), None)
        if not times:
            return f"what it gives is added to nothing of its shape: {first or 'nothing of torch'} reads it"
        if times != calls:
            return f"what it gives is added {times} times in {calls} calls"
        return f"what it gives is read by {first} besides the addition" if first else ""

    @property
    def rest(self) -> list[torch.Tensor]:
        """What each sum is more than the output and the stream: nothing, or what a batch norm adds."""
        parts = zip(self.sums, self.others, self.given, strict=True)
        return [total - other - given for total, other, given in parts]


def not_into_a_stream(model: nn.Module, example: Any, layers: Iterable[str]) -> Mapping[str, str]:
    """Return, for each layer, why its output is not taken in by a residual stream; empty where it is.

    Cost: two forward passes of two samples.
    """
    names, few = list(dict.fromkeys(layers)), few_samples(example, EXAMPLES)
    with quiet(model), without_gradients():
        plain, disturbed = (_seen(model, few, names, disturbing=disturbing) for disturbing in (False, True))
    return {name: plain[name].reason or _unproved(plain[name], disturbed[name]) for name in names}


def _unproved(plain: _Seen, disturbed: _Seen) -> str:
    if len(disturbed.given) != len(plain.given) or disturbed.reason:
        return "what becomes of what it gives is not the same in every forward pass"
    pairs = zip(plain.rest, disturbed.rest, disturbed.sums, strict=True)
    moved = any(not bool(same(sums + (a - b) * sums.ne(0), sums, _rounding(sums)).all()) for a, b, sums in pairs)
    return "what it gives does not arrive in the sum as it is" if moved else ""


def _rounding(sums: torch.Tensor) -> float:
    return max(ROUNDING, ROUNDING_UNITS * torch.finfo(sums.dtype).eps)


def _seen(model: nn.Module, batch: Any, names: Iterable[str], *, disturbing: bool) -> dict[str, _Seen]:
    seen, additions = {name: _Seen() for name in names}, Additions()
    generator = torch.Generator().manual_seed(0)

    def hook(name: str) -> Any:
        def left(_: nn.Module, __: Any, output: Any) -> Any:
            if not isinstance(output, torch.Tensor):
                return output
            noise = torch.randn(output.shape, generator=generator).to(output) if disturbing else 0.0
            given = output + noise * output.abs().mean()
            seen[name].given.append(given.clone())
            additions.follow(given, seen[name])
            return given

        return left

    with ExitStack() as stack, same_draws(model):
        for name in names:
            stack.callback(module_of(model, name).register_forward_hook(hook(name)).remove)
        stack.enter_context(additions)
        call(model, inputs_copied(batch))
    return seen
