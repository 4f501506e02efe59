"""A network run on a batch with what some layers give, or read, changed on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from dalr_stream.network.capture.batches import call, first_argument, tensors_in
from dalr_stream.network.capture.reading import same_draws, without_gradients
from dalr_stream.network.structure.proof import quiet

ROUNDING = 1e-4
"""Of what is compared, relative to its largest entry: float32 after a few products, each with matrices of condition 4
at most."""
Change = Callable[[torch.Tensor], torch.Tensor]


def run_changed(
    model: nn.Module, example: Any, changes: Mapping[str, Change], reading: Mapping[str, Change]
) -> list[torch.Tensor]:
    """Return the network's outputs with what layers give, or read, changed."""

    def read(change: Change) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            changed = change(first_argument(arguments, keywords))
            if arguments:
                return (changed, *arguments[1:]), keywords
            return arguments, {**keywords, next(iter(keywords)): changed}

        return hook

    with ExitStack() as stack:
        stack.enter_context(quiet(model))
        stack.enter_context(same_draws(model))
        for name, change in changes.items():
            hook = model.get_submodule(name).register_forward_hook(lambda _, __, given, change=change: change(given))
            stack.callback(hook.remove)
        for name, change in reading.items():
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(read(change), with_kwargs=True).remove)
        with without_gradients():
            return [tensor.clone() for tensor in tensors_in(call(model, example))]


def by_head(given: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Return (..., G r): each head's p features multiplied by its map (r, p); `maps` are (G, r, p)."""
    heads = given.reshape(*given.shape[:-1], maps.shape[0], maps.shape[2])
    return torch.einsum("...hp,hrp->...hr", heads, maps.to(given)).flatten(-2)


def alike(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Tell whether outputs are the same but for the rounding of a few products."""
    return len(actual) == len(expected) and all(map(same, actual, expected))


def same(actual: torch.Tensor, expected: torch.Tensor, rounding: float = ROUNDING) -> bool:
    """Compare entry by entry, relative to the largest one."""
    if actual.shape != expected.shape:
        return False
    least = rounding * float(expected.abs().max())
    return bool(torch.isclose(actual, expected, rtol=0.0, atol=least, equal_nan=True).all())
