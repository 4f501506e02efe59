"""Whether weights on disk are those of a network, tensor by tensor, and reading them into it one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.saved.shards import Shards
from dalr_stream.network.saved.ties import tied_parameters


def stored_as(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Return under which name each tensor of a network's state is stored.

    Raises FingerprintMismatchError where one is missing, left over, of another shape, or of whole numbers in place of
    real ones: they would be quantised weights, which mean nothing without their scales.
    """
    state: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    buffers = [name for name, _ in model.named_buffers() if name not in state]  # older files hold some, as computed
    known = [*state, *buffers]
    names = min((known, *_renamed(known, prefix)), key=lambda stored: len(set(stored) ^ set(shards.files)))
    stored = dict(zip(state, names, strict=False))
    for group in tied_parameters(model):
        there = [stored[name] for name in group if stored[name] in shards.files]
        _require_equal(shards, there)
        stored |= {name: there[0] for name in group if there}
    missing = [name for name, one in stored.items() if one not in shards.files]
    left = sorted(set(shards.files) - set(names))
    shapes = [
        f"'{name}' is {_shape(shards.shapes[one])} there and {_shape(state[name].shape)} in the network"
        for name, one in stored.items()
        if one in shards.shapes and shards.shapes[one] != tuple(state[name].shape)
    ]
    kinds = [
        f"'{name}' is {shards.kinds[one]} there and {state[name].dtype} in the network"
        for name, one in stored.items()
        if one in shards.kinds and ("F" in shards.kinds[one]) != state[name].is_floating_point()
    ]
    absent = [f"'{name}' is missing" for name in missing]
    wrong = [*absent, *(f"'{name}' is left over" for name in left), *shapes, *kinds]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise FingerprintMismatchError(
            f"'{shards.head}' does not fit the network that was built: {wrong[0]}{more}: build the network that the "
            "weights are of"
        )
    return stored


def require_same_types(model: nn.Module, shards: Shards, stored: Mapping[str, str]) -> None:
    """Raise FingerprintMismatchError where loading would round the weights, or make infinities of them, in silence."""
    types, state = shards.types(), model.state_dict()
    for name in sorted(state):
        tensor = state[name]
        saved = types.get(stored.get(name, name), tensor.dtype)
        if saved != tensor.dtype:
            raise FingerprintMismatchError(
                f"'{shards.head}' does not fit the network that was built: '{name}' was saved as {saved}, the network "
                f"has {tensor.dtype}: build it in {saved}, and convert it after loading"
            )


def read_into(model: nn.Module, shards: Shards) -> None:
    """Read every tensor into a network that is in memory, strictly."""
    stored = stored_as(model, shards)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.copy_(shards.tensor(stored[name]))


def _renamed(state: Sequence[str], prefix: str) -> Iterator[list[str]]:
    """Yield the names that a transformers model's weights may have, saved with its head or without."""
    if prefix != ".":
        yield [f"{prefix}{name}" for name in state]
        yield [name.removeprefix(prefix) for name in state]


def _require_equal(shards: Shards, names: Sequence[str]) -> None:
    """Raise FingerprintMismatchError where tensors that the network has as one differ on disk."""
    for name in names[1:]:
        if name != names[0] and not torch.equal(shards.tensor(name), shards.tensor(names[0])):
            raise FingerprintMismatchError(
                f"'{shards.head}': '{names[0]}' and '{name}' are one tensor in the network that was built and two "
                "different ones there: build it without tying them"
            )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
