"""The proof of a capture on its first batch: whose rows are whose, and that they are always the same.

    once more       the same rows, or something random, or with a memory, is on in the network
    one changed     with one sample replaced by another, only its rows change: this shows in which order rows come, and
                    finds layers that mix samples, are given rows by a router, or read a table that has no samples. Rows
                    that a router sends, or that come in another order, are looked up then: see `routed`
    padding changed where a mask is given: what stands where it says padding reaches no row that counts. A layer that it
                    does not reach at all, and that other inputs do, a decoder's with the mask of the encoder, has
                    another one's mask; see `padding`

All of it holds for each call of a layer that is called several times. Cost: three forward passes of one batch, a fourth
to tell encoder and decoder apart, and four where a router is at work; the padding waits for the first batch that has
some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import DalrStreamError, InvalidInputError
from dalr_stream.network.capture.batches import call, inputs_copied
from dalr_stream.network.capture.order import Orders, RowOrder, possible_orders
from dalr_stream.network.capture.proofs.ahead import Ahead
from dalr_stream.network.capture.proofs.disturbed import Replaced, with_sample_replaced
from dalr_stream.network.capture.proofs.observed import Calls, Observed, Seen, differ, observed_pass
from dalr_stream.network.capture.proofs.padding import Masks, Padding, PaddingProof
from dalr_stream.network.capture.proofs.refusals import called, refuse, refuse_routed
from dalr_stream.network.capture.proofs.routed_proof import (
    RoutedRows,
    kinds_of,
    may_be_routed,
    of_others,
    routed_pass,
)
from dalr_stream.network.capture.proofs.unrepeatable import what_differs
from dalr_stream.network.capture.reading import same_draws
from dalr_stream.network.layers.spec import LayerSpec

SAMPLE_PASSES, PADDING_PASSES = 2, 1
"""Forward passes that a proof takes beside those that count."""
_SEED = 0x9E3779B9


class CaptureProof:
    """What is proved of the rows of some layers, from the first batches that go through the network."""

    def __init__(self, model: nn.Module, layers: Sequence[LayerSpec], ahead: Ahead | None = None) -> None:
        """`ahead` has what passes showed that were made beforehand."""
        self._ahead = ahead or Ahead(layers)
        self._model = model
        self._layers = layers
        self._orders: Orders | None = None
        self._most_samples = 0
        self._runs = 0
        self._padding_is_open = True
        self._before: Observed | None = None
        self._batch: Any = None
        """A copy of the batch that is observed."""
        self._observed: Observed = {}

    def orders(self, batch: Any, samples: int) -> Orders | None:
        """Return the order of each layer's rows, by call, and prove it where it is not yet: two forward passes.

        A batch of one sample shows none; the first one with several is gone through then.
        """
        if self._most_samples < min(samples, 2):
            self._most_samples = samples
            self._before = self._run(batch)
            changed = with_sample_replaced(batch, samples)
            if changed is not None:
                after = self._run(changed.batch)
                self._orders, refused = {}, dict[str, InvalidInputError]()
                for stream, before in self._before.items():
                    try:
                        self._orders[stream] = _orders(stream, before, after.get(stream, []), samples, changed.sample)
                    except InvalidInputError as error:
                        refused[stream] = error
                if refused:
                    self._require_repeatable(batch, self._run(batch))  # what is random mixes samples in appearance
                    self._orders |= self._routed(batch, changed, samples, refused)
        return self._orders

    def _routed(
        self, batch: Any, changed: Replaced, samples: int, refused: Mapping[str, InvalidInputError]
    ) -> dict[str, tuple[RowOrder | None, ...]]:
        """Return the order of layers that are routed to; raises the first of `refused` that is not.

        Cost: two forward passes more.
        """
        first = next(iter(refused.values()))
        kinds = kinds_of(layer.name for layer in self._layers if layer.stream in refused)
        if not all(may_be_routed(self._model, layer) for layer in self._layers if layer.stream in refused):
            raise first
        alike = [layer for layer in self._layers if kinds_of([layer.name]) <= kinds]  # also one that no row reached
        try:
            before, after = (self._run_routed(one, alike, samples) for one in (batch, changed.batch))
        except InvalidInputError as error:
            raise first from error
        for layer in alike:
            if not before[layer.stream].same_as(after[layer.stream], of_others(changed.sample)):
                raise refused.get(layer.stream, first)
        return {layer.stream: (RowOrder(routed=True),) for layer in alike}

    def _run_routed(self, batch: Any, layers: Sequence[LayerSpec], samples: int) -> dict[str, RoutedRows]:
        with same_draws(self._model), routed_pass(self._model, layers, samples) as seen:
            call(self._model, inputs_copied(batch))
        return seen

    @property
    def proved(self) -> Orders:
        """The orders that are proved so far."""
        return self._orders or {}

    @property
    def padding_is_proved(self) -> bool:
        """Whether a batch with padding has been gone through."""
        return not self._padding_is_open

    def is_open(self, masks: Masks) -> bool:
        """Tell whether something is still to be proved by a batch with these masks."""
        return self._before is not None or self._is_due(masks)

    @contextmanager
    def observing(self, batch: Any, masks: Masks) -> Iterator[Observed]:
        """Observe a forward pass over `batch`, which may overwrite it, where something is still to be proved by it."""
        if not self.is_open(masks):
            yield {}
            return
        self._batch = inputs_copied(batch)
        with observed_pass(self._model, self._layers) as self._observed:
            yield self._observed

    def settle(self, masks: Masks, padding: Padding) -> None:
        """Raise InvalidInputError where the batch that was observed gives other rows another time, or by its padding.

        `padding` says which positions are padding for the network.
        """
        batch, self._batch = self._batch, None
        observed, self._observed = self._observed, {}
        self._require_repeatable(batch, observed)
        self._before = None
        if batch is not None and self._is_due(masks):
            proof = PaddingProof(self._run, self._run_routed, self._layers, self._orders)
            self._padding_is_open = not proof.require(batch, observed, masks, padding)

    def _require_repeatable(self, batch: Any, observed: Observed) -> None:
        """Raise InvalidInputError where a batch gives other rows than it gave before."""
        before = self._before or {}
        for stream, seen in observed.items():
            if stream in before and differ(seen, before[stream]):
                refuse(
                    f"'{stream}'",
                    f"the same batch gave other rows the second time: {what_differs(self._model, batch)}; while rows "
                    "are taken nothing may be random, or depend on earlier batches: turn it off",
                )

    def _is_due(self, masks: Masks) -> bool:
        each = [mask if isinstance(mask, tuple) else (mask,) for mask in masks.values()]
        return self._padding_is_open and any(one is not None and not one.all() for calls in each for one in calls)

    def _run(self, batch: Any) -> Observed:
        """Observe a forward pass of the proof's own, with random numbers of its own."""
        known = self._ahead.taken(batch)
        if known is not None:
            return known
        devices = sorted({parameter.device.index for parameter in self._model.parameters() if parameter.is_cuda})
        with torch.random.fork_rng(devices=devices), observed_pass(self._model, self._layers) as observed:
            self._runs += 1
            torch.manual_seed(_SEED + self._runs)  # never those of another pass: what is drawn must show
            try:
                call(self._model, inputs_copied(batch))
            except (DalrStreamError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever it is: the network takes the batch as it was, and not this one
                if self._before is None:  # the batch itself: the caller names it
                    raise
                raise InvalidInputError(
                    f"capture: the network refuses its first batch with one sample, or its padding, replaced "
                    f"({type(error).__name__}: {error}): prove=False (`capture.prove = false`) does without"
                ) from error
        return observed


def _orders(stream: str, before: Calls, after: Calls, samples: int, sample: int) -> tuple[RowOrder | None, ...]:
    """Return the order of a layer's rows at each of its calls; raises InvalidInputError where there is none."""
    if len(after) != len(before):
        refuse_routed(f"'{stream}'", sum(len(seen.projections) for seen in before), after)
    orders = tuple(
        _order(called(stream, number, len(before)), seen, here, samples, sample)
        for number, (seen, here) in enumerate(zip(before, after, strict=True))
    )
    if all(order is not None and order.of_every_sample for order in orders):
        refuse(
            f"'{stream}'",
            f"none of its rows, of shape {before[0].leading}, changes with a sample: they are a table's, of positions "
            "say, and no sample's",
        )
    return orders


def _order(layer: str, seen: Seen, here: Seen, samples: int, sample: int) -> RowOrder | None:
    """Return the order of the rows of one call."""
    if here.leading != seen.leading:
        refuse_routed(layer, len(seen.projections), [here])
    changed = seen.changed(here)
    if not changed.any() and seen.leading[:1] != (samples,):
        return RowOrder(of_every_sample=True)
    fitting = (
        order
        for order in possible_orders(seen.leading, samples)
        if not changed[np.delete(order.numbers(seen.leading, samples), sample, axis=0)].any()
    )
    order = next(fitting, None)
    if order is None:
        refuse(
            layer,
            f"with one of {samples} samples replaced, rows of others change too: samples are mixed before it, or its "
            "rows are not in the order of samples",
        )
    return order if len(seen.projections) > samples else None
