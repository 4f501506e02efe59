"""The proof of masks: with what stands in the padding changed, the rows that count stay as they are.

Where calls of a layer have masks of their own, it is not said which input each of them speaks of. Then each input's
padding is changed by itself, as each of the masks has it, and one of them must leave the rows that count alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import inputs_of
from dalr_stream.network.capture.masks import LayerMask, of_call
from dalr_stream.network.capture.order import Orders, RowOrder, is_routed, order_of_call
from dalr_stream.network.capture.proofs.disturbed import with_other_padding, with_sample_replaced
from dalr_stream.network.capture.proofs.observed import Calls, Observed, Seen, differ
from dalr_stream.network.capture.proofs.refusals import called, refuse, refuse_padding
from dalr_stream.network.capture.proofs.routed_proof import RoutedRows, counted
from dalr_stream.network.layers.spec import LayerSpec

Masks = Mapping[str, LayerMask]
"""By stream: (N, T), the positions that count, or those of each call; None for a layer without a mask."""
Padding = Mapping[str, tuple[torch.Tensor, ...]]
"""By the keys of the inputs: where they hold padding, (N, T), as each mask that may speak of them has it."""


class PaddingProof:
    """Changes what stands in the padding of one batch, and watches where that arrives."""

    def __init__(
        self,
        run: Callable[[Any], Observed],
        run_routed: Callable[[Any, Sequence[LayerSpec], int], Mapping[str, RoutedRows]],
        layers: Sequence[LayerSpec],
        orders: Orders | None,
    ) -> None:
        self._run = run
        self._run_routed = run_routed
        self._layers = layers
        self._orders = orders

    def require(self, batch: Any, observed: Observed, masks: Masks, padding: Padding) -> bool:
        """Raise InvalidInputError where padding reaches rows that count; False where the batch shows nothing of it."""
        found = {key: self._places(batch, observed, masks, key, several) for key, several in padding.items()}
        places = {key: one for key, one in found.items() if one is not None}
        changed = with_other_padding(batch, places)
        if changed is None:
            return False
        after = self._run(changed)
        self._require_routed_alike(batch, changed, masks)
        strange = self._unreached(observed, after, masks)
        others = with_sample_replaced(batch, len(next(iter(places.values()))), but=places) if strange else None
        seen = self._run(others.batch) if others is not None else {}
        for stream in strange:
            if stream in seen and differ(observed[stream], seen[stream]):
                refuse(
                    f"'{stream}'",
                    "its rows change with other inputs than those that the mask describes, and not with what stands in "
                    "their padding: it is not this layer's mask: give layers masks of their own, mask={pattern: mask}",
                )
        return True

    def _places(
        self, batch: Any, observed: Observed, masks: Masks, key: str, several: Sequence[torch.Tensor]
    ) -> torch.Tensor | None:
        """Return the padding of one input among that of `several` masks; None where the batch shows none of it."""
        inputs = inputs_of(batch)
        read = inputs[key] if isinstance(inputs, Mapping) else inputs
        fitting = [places for places in several if isinstance(read, torch.Tensor) and read.shape[:2] == places.shape]
        if len(fitting) < 2:
            return next(iter(fitting), None)
        failures: list[InvalidInputError] = []
        for places in sorted(fitting, key=lambda places: not places.any()):  # last one that says nothing is padding
            changed = with_other_padding(batch, {key: places})
            if changed is None:
                return None
            try:
                self._unreached(observed, self._run(changed), masks)
            except InvalidInputError as error:
                failures.append(error)
            else:
                return places
        raise failures[0]

    def _unreached(self, observed: Observed, after: Observed, masks: Masks) -> list[str]:
        """Return the layers of which no row changed, not even one that does not count."""
        return [
            stream
            for stream, mask in masks.items()
            if mask is not None
            and stream in observed
            and not is_routed(self._orders, stream)
            and not self._is_reached(stream, observed[stream], after.get(stream, []), mask)
        ]

    def _is_reached(self, stream: str, before: Calls, after: Calls, mask: LayerMask) -> bool:
        """Tell whether what stands in the padding reaches rows that do not count, at any call of a layer."""
        if [seen.leading for seen in after] != [seen.leading for seen in before]:
            refuse(f"'{stream}'", "it gives another number of rows when the content of the padding changes")
        reached = [
            _is_reached(
                called(stream, number, len(before)),
                seen,
                now,
                own.numpy(),
                order_of_call(self._orders, stream, number) or RowOrder(),
            )
            for number, (seen, now) in enumerate(zip(before, after, strict=True))
            if (own := of_call(mask, number)) is not None
        ]
        return any(reached)

    def _require_routed_alike(self, batch: Any, changed: Any, masks: Masks) -> None:
        """Raise InvalidInputError where padding reaches rows of layers that are routed to; two forward passes more."""
        masked = {stream: mask for stream, mask in masks.items() if isinstance(mask, torch.Tensor)}
        layers = [layer for layer in self._layers if layer.stream in masked and is_routed(self._orders, layer.stream)]
        if not layers:
            return
        samples = len(next(iter(masked.values())))
        before, after = (self._run_routed(one, layers, samples) for one in (batch, changed))
        for layer in layers:
            unchanged = counted(masked[layer.stream])
            if not before[layer.stream].same_as(after[layer.stream], unchanged):
                refuse_padding(f"'{layer.stream}'")


def _is_reached(layer: str, before: Seen, after: Seen, mask: NDArray[np.bool_], order: RowOrder) -> bool:
    """Tell whether what stands in the padding reaches rows that do not count; True for a call that has none of them.

    Raises InvalidInputError where it reaches rows that do.
    """
    numbers = order.numbers(before.leading, len(mask))
    masked = numbers.shape == mask.shape and not order.of_every_sample
    counted = mask if masked else np.ones(numbers.shape, np.bool_)
    changed = before.changed(after)
    if changed[numbers[counted]].any():
        refuse_padding(layer)
    return bool(counted.all() or changed[numbers[~counted]].any())
