"""Masks: which positions of each sample count, for every layer or by layer.

A mask is a key of the batch's inputs, or a function of the batch; a mapping gives one to each pattern of layers. The
first pattern that a layer's name matches decides; a layer that none matches has no mask. A layer that is called several
times in one pass, on inputs of their own, has a list of masks: one for each call, in their order.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import inputs_of
from dalr_stream.network.layers.identity import tensor_digest

MaskOf = Callable[[Any], torch.Tensor]
Source = str | MaskOf
"""A key of the inputs, or a function of the batch."""
OfCalls = Sequence[Source | None]
"""One for each call of a layer."""
Mask = Source | OfCalls | Mapping[str, Source | OfCalls | None]
LayerMask = torch.Tensor | tuple[torch.Tensor | None, ...] | None
"""(N, T) for all calls of a layer, or one for each; None where all positions count."""
EVERY_LAYER = "*"
_BY_POSITION = 3
"""Dimensions of outputs that have positions."""
_ATTENTION = "attention_mask"
_DECODER = "decoder_"


def by_pattern(mask: Mask | None) -> dict[str, Source | tuple[Source | None, ...] | None]:
    """Return the source of the mask for each pattern of layers; raises InvalidInputError for what is no mask."""
    given: Mapping[str, Any] = mask if isinstance(mask, Mapping) else {} if mask is None else {EVERY_LAYER: mask}
    sources = {pattern: tuple(one) if isinstance(one, list | tuple) else one for pattern, one in given.items()}
    for source in sources.values():
        for one in source if isinstance(source, tuple) and source else (source,):
            if one is not None and not callable(one) and (not isinstance(one, str) or not one):
                raise InvalidInputError(
                    f"rows: mask must be a key of the batch or a function of it, a list of these for the calls of a "
                    f"layer, or a mapping of these by patterns of layers, got {one!r}"
                )
    return sources


def of_call(mask: LayerMask, number: int) -> torch.Tensor | None:
    """Return a layer's mask at call `number`; None where it has none."""
    if not isinstance(mask, tuple):
        return mask
    return mask[number] if number < len(mask) else None


def mask_words(mask: Mask) -> str:
    """Return a mask in words; a function goes by its name."""
    sources = by_pattern(mask)
    if not isinstance(mask, Mapping):
        return _name_of(sources[EVERY_LAYER])
    return " and ".join(
        f"{_name_of(source)} of '{pattern}'" for pattern, source in sources.items() if source is not None
    )


def require_a_mask_each(stream: str, masks: LayerMask, calls: int, *, routed: bool) -> None:
    """Raise InvalidInputError for a layer that has masks for other calls than there are."""
    if isinstance(masks, tuple) and (routed or len(masks) != calls):
        often = "as often as a router decides" if routed else f"{calls} times"
        raise InvalidInputError(
            f"layer '{stream}': has {len(masks)} masks, one for each call, and is called {often} in a forward pass of "
            "this batch: give as many as there are calls, in their order, or one for all of them"
        )


@dataclass(frozen=True, slots=True)
class BatchMasks:
    """The masks of one batch: (N, T) of booleans on the CPU, by patterns of layers."""

    masks: Mapping[str, LayerMask]
    padding: Mapping[str, tuple[torch.Tensor, ...]]
    """By the keys of the inputs ("" where they are a tensor): where the network is given padding, (N, T).

    Several where calls have masks of their own, and it is not known which of them speaks of the input.
    """

    @classmethod
    def of(cls, mask: Mask, batch: Any, samples: int) -> BatchMasks:
        """Look the masks of a batch up; raises InvalidInputError where there is none, or it is no mask."""
        masks: dict[str, LayerMask] = {}
        padding: dict[str, tuple[torch.Tensor, ...]] = {}
        for pattern, source in by_pattern(mask).items():
            several = source if isinstance(source, tuple) else (source,)
            found = tuple(None if one is None else _look_up(one, batch, samples) for one in several)
            masks[pattern] = found if isinstance(source, tuple) else found[0]
            here: dict[str, tuple[torch.Tensor, ...]] = {}
            for one, its in zip(several, found, strict=True):
                where = {} if one is None or its is None else _padding(one, its, batch)
                here |= {key: (*here.get(key, ()), places) for key, places in where.items()}
            padding = {**here, **padding}
        return cls(masks, padding)

    def of_layer(self, name: str) -> LayerMask:
        """Return the mask of a layer; None where it has none."""
        return next((mask for pattern, mask in self.masks.items() if _matches(pattern, name)), None)

    def of_outputs(self) -> torch.Tensor | None:
        """Return the mask of what the network gives: that of all layers; None where it has none, or calls have."""
        mask = self.of_layer("")
        return None if isinstance(mask, tuple) else mask

    def require_one_of(self, outputs: torch.Tensor, place: str) -> None:
        """Raise InvalidInputError for outputs (N, T, C) that have no mask, and positions that a layer's leaves out."""
        if outputs.ndim != _BY_POSITION or any(_matches(one, "") for one in self.masks):
            return
        for pattern, mask in self.masks.items():
            for one in mask if isinstance(mask, tuple) else (mask,):
                if one is not None and one.shape == outputs.shape[:2] and not bool(one.all()):
                    raise InvalidInputError(
                        f"{place}: the network's output has positions (N, T) = {tuple(one.shape)}, of which the mask "
                        f"of '{pattern}' leaves some out, and no mask of its own: give it one by the pattern '*', as "
                        "the last: that mask, or one that leaves nothing out (None)"
                    )

    def unmasked(self) -> BatchMasks:
        """Return masks of the same shapes that leave nothing out."""
        whole: dict[str, LayerMask] = {}
        for key, mask in self.masks.items():
            whole[key] = tuple(map(_nothing_out, mask)) if isinstance(mask, tuple) else _nothing_out(mask)
        return BatchMasks(whole, {})

    @property
    def digest(self) -> str:
        """What identifies them."""
        several = [mask if isinstance(mask, tuple) else (mask,) for mask in self.masks.values()]
        digests = [tensor_digest(mask) for masks in several for mask in masks if mask is not None]
        return digests[0] if len(digests) == 1 else hashlib.sha256(":".join(digests).encode()).hexdigest()


def _nothing_out(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else torch.ones_like(mask)


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


def _name_of(source: Source | tuple[Source | None, ...] | None) -> str:
    if isinstance(source, tuple):
        return f"for its calls {', '.join(map(_name_of, source))}"
    if source is None:
        return "no mask"
    if isinstance(source, str):
        return f"mask '{source}'"
    named: Any = source if hasattr(source, "__qualname__") else type(source)
    return f"mask {named.__module__}:{named.__qualname__}"


def _padding(source: Source, mask: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
    """Return where the network is given padding: a function may leave out more, a question or the first token.

    Of what it leaves out that is padding which the `attention_mask` leaves out too; or all of it, where it is a member
    of the batch.
    """
    if isinstance(source, str):
        return _padding_of(batch, source, mask)
    inputs = inputs_of(batch)
    if isinstance(inputs, Mapping):
        attention = inputs.get(_ATTENTION)
        if isinstance(attention, torch.Tensor) and attention.shape == mask.shape:
            return _padding_of(batch, _ATTENTION, mask | (attention.cpu() != 0))
        key = next((key for key, value in inputs.items() if _is(value, mask)), None)
        return {} if key is None else _padding_of(batch, key, mask)
    others = batch[1:] if isinstance(batch, tuple | list) else ()
    return _padding_of(batch, "", mask) if any(_is(other, mask) for other in others) else {}


def _is(member: Any, mask: torch.Tensor) -> bool:
    """Tell whether a member of a batch is the very mask."""
    return isinstance(member, torch.Tensor) and member.shape == mask.shape and torch.equal(member.cpu() != 0, mask)


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
