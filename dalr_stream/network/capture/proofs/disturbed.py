"""Batches like one at hand but for one thing: a sample replaced by another, or what stands in the padding.

What is put in comes from the batch itself, so it is nothing that the network could not have been given.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dalr_stream.network.capture.batches import inputs_of, names_mask

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A batch with one sample replaced."""

    batch: Any
    sample: int


def with_sample_replaced(batch: Any, samples: int, *, but: Container[str] = ()) -> Replaced | None:
    """Return the inputs with one sample replaced by another one, whole; a single one by itself turned round.

    The inputs by the keys `but` stay as they are. None where all samples are the same, so that no change would show.
    """
    whole = inputs_of(batch)
    inputs = {k: v for k, v in whole.items() if k not in but} if isinstance(whole, Mapping) else whole
    sample = max(samples // 2 - samples % 2, 0)  # never the one that stays in its place when all are turned round
    for other in [number for number in range(samples) if number != sample]:
        changed = _map(inputs, samples, partial(_with_row_of, number=sample, other=other))
        if not _same(inputs, changed):
            return Replaced({**whole, **changed} if isinstance(whole, Mapping) else changed, sample)
    turned = _map(inputs, samples, partial(_with_row_turned, number=sample))
    if _same(inputs, turned):
        return None
    return Replaced({**whole, **turned} if isinstance(whole, Mapping) else turned, sample)


def with_other_padding(batch: Any, padding: Mapping[str, torch.Tensor]) -> Any:
    """Return the inputs with other content where `padding` (N, T) is True, by the keys of the inputs; None for none.

    The key of inputs that are a tensor is "". Only tensors (N, T, ...) change, and no masks.
    """
    inputs = inputs_of(batch)

    def change(key: str, tensor: torch.Tensor) -> torch.Tensor:
        where = padding.get(key)
        if where is None or tensor.shape[:2] != where.shape or _is_mask(key, tensor, where):
            return tensor
        return _with_content(tensor, where.to(tensor.device))

    changed: Any
    if isinstance(inputs, Mapping):
        changed = {k: change(k, value) if isinstance(value, torch.Tensor) else value for k, value in inputs.items()}
    else:
        changed = change("", inputs)
    return None if _same(inputs, changed) else changed


def _map(inputs: Any, samples: int, change: Change) -> Any:
    """Return the inputs with every tensor of so many samples changed."""
    if isinstance(inputs, torch.Tensor):
        return change(inputs) if inputs.ndim and len(inputs) == samples else inputs
    if isinstance(inputs, Mapping):
        return {name: _map(member, samples, change) for name, member in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(_map(member, samples, change) for member in inputs)
    return inputs


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one is other or torch.equal(one, other)
    if isinstance(one, Mapping):
        return all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return all(map(_same, one, other))
    return True


def _with_row_of(tensor: torch.Tensor, number: int, other: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[number] = tensor[other]
    return changed


def _with_row_turned(tensor: torch.Tensor, number: int) -> torch.Tensor:
    """Turn one sample round along all of its dimensions; a mask stays as it is."""
    changed = tensor.clone()
    if tensor.ndim > 1 and tensor.dtype != torch.bool:
        changed[number] = tensor[number].flip(tuple(range(tensor.ndim - 1)))
    return changed


def _is_mask(key: str, tensor: torch.Tensor, padding: torch.Tensor) -> bool:
    says_so = tensor.shape == padding.shape and torch.equal(tensor.cpu(), (~padding.cpu()).to(tensor.dtype))
    return says_so or tensor.dtype == torch.bool or names_mask(key)


def _with_content(tensor: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return a tensor with values of other positions where `where` is True."""
    content = tensor[~where]
    if not len(content) or not where.any():
        return tensor
    if not tensor.is_floating_point():
        content = torch.unique(content, dim=0)
    old = tensor[where]
    turns = torch.arange(len(old), device=tensor.device)
    new = content[turns % len(content)]
    same = (new == old).reshape(len(old), -1).all(dim=1)
    new[same] = content[(turns[same] + 1) % len(content)]
    changed = tensor.clone()
    changed[where] = new
    return changed
