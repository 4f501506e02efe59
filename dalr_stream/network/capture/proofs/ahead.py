"""Forward passes of a proof that are made together, before it asks for them.

A network whose weights are read block by block reads each block once for all of them then. What nobody asks for does no
harm, and what was not foreseen is run when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dalr_stream.network.capture.batches import digest_of_inputs, inputs_of
from dalr_stream.network.capture.masks import BatchMasks
from dalr_stream.network.capture.proofs.disturbed import with_other_padding, with_sample_replaced
from dalr_stream.network.capture.proofs.observed import Observed
from dalr_stream.network.layers.spec import LayerSpec

Walk = Callable[[Sequence[Any], Sequence[LayerSpec]], Sequence[Observed] | None]
"""Takes several batches through a network at once and returns what each showed of the layers' rows; None where one of
them cannot be taken so."""


class Ahead:
    """What passes over some batches showed, each to be taken once."""

    def __init__(self, layers: Sequence[LayerSpec], walk: Walk | None = None) -> None:
        """Without a `walk` nothing is made beforehand."""
        self._layers, self._walk = layers, walk
        self._waiting: dict[str, list[Observed]] = {}

    def look(self, batch: Any, samples: int, masks: BatchMasks | None, *, proved: bool) -> None:
        """Make the passes that a proof takes on a batch; where all but the padding is `proved`, those for that."""
        if self._walk is None:
            return
        wanted = list(_of_padding(batch, masks)) if proved else list(_of_all(batch, samples, masks))
        found = self._walk(wanted, self._layers) if wanted else None
        for one, observed in zip(wanted, found or (), strict=False):
            self._waiting.setdefault(digest_of_inputs(one), []).append(observed)

    def taken(self, batch: Any) -> Observed | None:
        """Return what a pass over a batch showed, where one was made that nobody has taken yet."""
        waiting = self._waiting.get(digest_of_inputs(batch)) if self._waiting else None
        return waiting.pop(0) if waiting else None


def _of_all(batch: Any, samples: int, masks: BatchMasks | None) -> Iterator[Any]:
    yield batch
    changed = with_sample_replaced(batch, samples)
    if changed is not None:
        yield changed.batch
    yield from _of_padding(batch, masks)


def _of_padding(batch: Any, masks: BatchMasks | None) -> Iterator[Any]:
    """Yield the batch once more, and with other content where a mask alone says that there is padding."""
    yield batch
    inputs = inputs_of(batch)
    found = {} if masks is None else masks.padding
    places = {key: parts[0] for key, parts in found.items() if len(parts) == 1 and _fits(inputs, key, parts[0])}
    padded = with_other_padding(batch, places)
    if padded is not None:
        yield padded


def _fits(inputs: Any, key: str, places: torch.Tensor) -> bool:
    read = inputs[key] if isinstance(inputs, dict) else inputs
    return isinstance(read, torch.Tensor) and read.shape[:2] == places.shape
