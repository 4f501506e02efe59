"""Masks: which positions of each sample count, for every layer or by layer.

A mask is a key of the batch's inputs, or a function of the batch; a mapping gives one to each pattern of layers. The
first pattern that a layer's name matches decides; a layer that none matches has no mask.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import inputs_of
from dalr_stream.network.layers.identity import tensor_digest

MaskOf = Callable[[Any], torch.Tensor]
Source = str | MaskOf
"""A key of the inputs, or a function of the batch."""
Mask = Source | Mapping[str, Source | None]
EVERY_LAYER = "*"
_ATTENTION = "attention_mask"
_DECODER = "decoder_"


def by_pattern(mask: Mask | None) -> dict[str, Source | None]:
    """Return the source of the mask for each pattern of layers; raises InvalidInputError for what is no mask."""
    sources: dict[str, Source | None] = {}
    if isinstance(mask, Mapping):
        sources = dict(mask)
    elif mask is not None:
        sources = {EVERY_LAYER: mask}
    for source in sources.values():
        if source is not None and not callable(source) and (not isinstance(source, str) or not source):
            raise InvalidInputError(
                f"rows: mask must be a key of the batch or a function of it, or a mapping of these by patterns of "
                f"layers, got {source!r}"
            )
    return sources


def mask_words(mask: Mask) -> str:
    """Return a mask in words; a function goes by its name."""
    sources = by_pattern(mask)
    if not isinstance(mask, Mapping):
        return _name_of(mask)
    return " and ".join(
        f"{_name_of(source)} of '{pattern}'" for pattern, source in sources.items() if source is not None
    )


@dataclass(frozen=True, slots=True)
class BatchMasks:
    """The masks of one batch: (N, T) of booleans on the CPU, by patterns of layers."""

    masks: Mapping[str, torch.Tensor | None]
    padding: Mapping[str, torch.Tensor]
    """By the keys of the inputs ("" where they are a tensor): where the network is given padding, (N, T)."""

    @classmethod
    def of(cls, mask: Mask, batch: Any, samples: int) -> BatchMasks:
        """Look the masks of a batch up; raises InvalidInputError where there is none, or it is no mask."""
        masks: dict[str, torch.Tensor | None] = {}
        padding: dict[str, torch.Tensor] = {}
        for pattern, source in by_pattern(mask).items():
            masks[pattern] = found = None if source is None else _look_up(source, batch, samples)
            if source is not None and found is not None:
                padding = {**_padding(source, found, batch), **padding}
        return cls(masks, padding)

    def of_layer(self, name: str) -> torch.Tensor | None:
        """Return the mask of a layer; None where it has none."""
        return next((mask for pattern, mask in self.masks.items() if _matches(pattern, name)), None)

    def unmasked(self) -> BatchMasks:
        """Return masks of the same shapes that leave nothing out."""
        return BatchMasks({key: None if m is None else torch.ones_like(m) for key, m in self.masks.items()}, {})

    @property
    def digest(self) -> str:
        """What identifies them."""
        digests = [tensor_digest(mask) for mask in self.masks.values() if mask is not None]
        return digests[0] if len(digests) == 1 else hashlib.sha256(":".join(digests).encode()).hexdigest()


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _look_up(source: Source, batch: Any, samples: int) -> torch.Tensor:
    mask = source(batch) if callable(source) else _by_key(source, batch)
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape[0] != samples:
        what = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise InvalidInputError(
            f"rows: {_name_of(source)} must give a tensor (N, T) with N = {samples} samples, got {what}: name a "
            "function of the batch that makes one"
        )
    if bool(((mask != 0) & (mask != 1)).any()):
        raise InvalidInputError(
            f"rows: {_name_of(source)} must give True or 1 for positions that count and False or 0 for the others, "
            f"got {mask.dtype} values from {mask.min()} to {mask.max()}: name a function that makes such a mask"
        )
    counted: torch.Tensor = (mask != 0).cpu()
    return counted


def _by_key(key: str, batch: Any) -> Any:
    inputs = inputs_of(batch)
    if not isinstance(inputs, Mapping) or key not in inputs:
        has = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else "no keys, its inputs are a tensor"
        raise InvalidInputError(
            f"rows: the batch has no '{key}', it has {has}: name one of its keys, or a function of the batch"
        )
    return inputs[key]


def _name_of(source: Source | None) -> str:
    if isinstance(source, str):
        return f"mask '{source}'"
    named: Any = source if hasattr(source, "__qualname__") else type(source)
    return f"mask {named.__module__}:{named.__qualname__}"


def _padding(source: Source, mask: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
    """Return where the network is given padding: a function may leave out more, a question or the first token.

    Of what it leaves out that is padding which the `attention_mask` leaves out too; or all of it, where it is a member
    of the batch that the network is not given.
    """
    if isinstance(source, str):
        return _padding_of(batch, source, mask)
    inputs = inputs_of(batch)
    if isinstance(inputs, Mapping):
        attention = inputs.get(_ATTENTION)
        if isinstance(attention, torch.Tensor) and attention.shape == mask.shape:
            return _padding_of(batch, _ATTENTION, mask | (attention.cpu() != 0))
        return {}
    others = batch[1:] if isinstance(batch, tuple | list) else ()
    member = any(
        isinstance(other, torch.Tensor) and other.shape == mask.shape and torch.equal(other.cpu() != 0, mask)
        for other in others
    )
    return _padding_of(batch, "", mask) if member else {}


def _padding_of(batch: Any, key: str, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return, by the keys of the inputs that a mask speaks of, where they hold padding.

    An encoder's `attention_mask` does not speak of what goes to the decoder, whose own is `decoder_attention_mask`.
    """
    inputs = inputs_of(batch)
    if not isinstance(inputs, Mapping):
        return {"": ~mask}
    of_decoder = key.startswith(_DECODER)
    both = not key.endswith(_ATTENTION)
    return {name: ~mask for name in inputs if both or name.startswith(_DECODER) == of_decoder}
