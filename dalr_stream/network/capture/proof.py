"""The proof of a capture on its first batch: whose rows are whose, and that they are always the same.

    once more       the same rows, or something random, or with a memory, is on in the network
    one changed     with one sample replaced by another, only its rows change: this shows in which order rows come, and
                    finds layers that mix samples, are given rows by a router, or read a table that has no samples
    padding changed where a mask is given: what stands where it says padding reaches no row that counts. A layer that it
                    does not reach at all, and that other inputs do, a decoder's with the mask of the encoder, has
                    another one's mask

Rows are compared by four random projections each, so nothing as large as the activations is kept. Cost: three forward
passes of one batch, a fourth to tell encoder and decoder apart; the padding waits for the first batch that has some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import DalrStreamError, InvalidInputError
from dalr_stream.network.capture.batches import call, first_argument, inputs_copied
from dalr_stream.network.capture.disturbed import with_other_padding, with_sample_replaced
from dalr_stream.network.capture.order import Orders, RowOrder, possible_orders
from dalr_stream.network.capture.unrepeatable import what_differs
from dalr_stream.network.layers.groups import channels_of, part_of
from dalr_stream.network.layers.kinds import (
    CONVOLUTIONS,
    LayerRows,
    require_real,
    rows_entering,
    rows_leaving,
    rows_of_channels,
)
from dalr_stream.network.layers.spec import LayerSpec, module_of
from dalr_stream.numerics.rows.streams import Side, module_name

SAMPLE_PASSES, PADDING_PASSES = 2, 1
"""Forward passes that a proof takes beside those that count."""
PROJECTIONS = 4
ROUNDING = 1e-5
"""Of the largest projection: far above that of float32, far below what another token changes."""
_SEED = 0x9E3779B9
REMEDY = "or leave the layer out; prove=False (`capture.prove = false`) takes the rows as they come, unproved"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one forward pass showed of a layer's rows."""

    leading: tuple[int, ...]
    """Their dimensions, without the features."""
    projections: torch.Tensor
    """(rows, 4)"""

    def changed(self, other: Seen) -> NDArray[np.bool_]:
        """(rows,): which rows are not those of another pass."""
        scale = float(self.projections.abs().nan_to_num(posinf=0.0, neginf=0.0).max()) if len(self.projections) else 0.0
        same = torch.isclose(other.projections, self.projections, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)
        differs: NDArray[np.bool_] = (~same).any(dim=1).cpu().numpy()
        return differs


Observed = dict[str, Seen]
"""By stream."""
Masks = Mapping[str, torch.Tensor | None]
"""By stream: (N, T), the positions that count; None for a layer without a mask."""


class CaptureProof:
    """What is proved of the rows of some layers, from the first batches that go through the network."""

    def __init__(self, model: nn.Module, layers: Sequence[LayerSpec]) -> None:
        self._model = model
        self._layers = layers
        self._orders: Orders | None = None
        self._most_samples = 0
        self._runs = 0
        self._padding_is_open = True
        self._before: Observed | None = None

    def orders(self, batch: Any, samples: int) -> Orders | None:
        """Return the order of each layer's rows, and prove it where it is not yet: two forward passes.

        A batch of one sample shows none; the first one with several is gone through then.
        """
        if self._most_samples < min(samples, 2):
            self._most_samples = samples
            self._before = self._run(batch)
            changed = with_sample_replaced(batch, samples)
            if changed is not None:
                after = self._run(changed.batch)
                try:
                    self._orders = {
                        layer.stream: _order(layer.stream, self._before, after, samples, changed.sample)
                        for layer in self._layers
                        if layer.stream in self._before
                    }
                except InvalidInputError:
                    self._require_repeatable(batch, self._run(batch))  # what is random mixes samples in appearance
                    raise
        return self._orders

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
    def observing(self, masks: Masks) -> Iterator[Observed]:
        """Observe a forward pass where something is still to be proved by it."""
        if not self.is_open(masks):
            yield {}
            return
        with _observed(self._model, self._layers) as observed:
            yield observed

    def settle(self, batch: Any, observed: Observed, masks: Masks, padding: Any) -> None:
        """Raise InvalidInputError where a batch that was observed gives other rows another time, or by its padding.

        `padding` says which positions are padding for the network: a mask (N, T), by the keys of the batch's inputs
        that it speaks of.
        """
        self._require_repeatable(batch, observed)
        self._before = None
        changed = with_other_padding(batch, padding) if self._is_due(masks) else None
        if changed is None:
            return
        self._padding_is_open = False
        after = self._run(changed)
        strange = [
            stream
            for stream, mask in masks.items()
            if mask is not None
            and stream in observed
            and not _is_reached(stream, observed[stream], after.get(stream), mask.numpy(), self._order_of(stream))
        ]
        others = with_sample_replaced(batch, len(next(iter(padding.values()))), but=padding) if strange else None
        seen = self._run(others.batch) if others is not None else {}
        for stream in strange:
            if stream in seen and _differ(observed[stream], seen[stream]):
                _refuse(
                    stream,
                    "its rows change with other inputs than those that the mask speaks of, and not with what stands in "
                    "their padding: it is not this layer's mask: give layers masks of their own, mask={pattern: mask}",
                )

    def _order_of(self, stream: str) -> RowOrder:
        return (self._orders or {}).get(stream) or RowOrder()

    def _require_repeatable(self, batch: Any, observed: Observed) -> None:
        """Raise InvalidInputError where a batch gives other rows than it gave before."""
        before = self._before or {}
        for stream, seen in observed.items():
            if stream in before and _differ(seen, before[stream]):
                _refuse(
                    stream,
                    f"the same batch gave other rows the second time: {what_differs(self._model, batch)}; while rows "
                    "are taken nothing may be random, or depend on earlier batches: turn it off",
                )

    def _is_due(self, masks: Masks) -> bool:
        return self._padding_is_open and any(mask is not None and not mask.all() for mask in masks.values())

    def _run(self, batch: Any) -> Observed:
        """Observe a forward pass of the proof's own, with random numbers of its own."""
        devices = sorted({parameter.device.index for parameter in self._model.parameters() if parameter.is_cuda})
        with torch.random.fork_rng(devices=devices), _observed(self._model, self._layers) as observed:
            self._runs += 1
            torch.manual_seed(_SEED + self._runs)  # never those of another pass: what is drawn must show
            try:
                call(self._model, inputs_copied(batch))
            except (DalrStreamError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if self._before is None:  # the batch itself: the caller names it
                    raise
                raise InvalidInputError(
                    f"capture: the network refuses its first batch with one sample, or its padding, replaced "
                    f"({type(error).__name__}: {error}): prove=False (`capture.prove = false`) does without"
                ) from error
        return observed


def _order(stream: str, before: Observed, after: Observed, samples: int, sample: int) -> RowOrder | None:
    """Return the order of a layer's rows; raises InvalidInputError where there is none."""
    seen, here = before[stream], after.get(stream)
    rows = len(seen.projections)
    if here is None or here.leading != seen.leading:
        now = 0 if here is None else len(here.projections)
        _refuse(
            stream,
            f"it gave {rows} rows for a batch and {now} with one sample replaced: rows are packed, or sent to it by a "
            "router, so that whose they are is not known",
        )
    changed = seen.changed(here)
    if not changed.any() and seen.leading[:1] != (samples,):
        _refuse(
            stream,
            f"none of its rows, of shape {seen.leading}, changes with a sample: they are a table's, of positions say, "
            "and no sample's",
        )
    fitting = (
        order
        for order in possible_orders(seen.leading, samples)
        if not changed[np.delete(order.numbers(seen.leading, samples), sample, axis=0)].any()
    )
    order = next(fitting, None)
    if order is None:
        _refuse(
            stream,
            f"with one of {samples} samples replaced, rows of others change too: samples are mixed before it, or its "
            "rows are not in the order of samples",
        )
    return order if rows > samples else None


def _is_reached(stream: str, before: Seen, after: Seen | None, mask: NDArray[np.bool_], order: RowOrder) -> bool:
    """Tell whether what stands in the padding reaches rows that do not count; True for a layer that has none of them.

    Raises InvalidInputError where it reaches rows that do.
    """
    if after is None or after.leading != before.leading:
        _refuse(stream, "it gives another number of rows when what stands in the padding is changed")
    numbers = order.numbers(before.leading, len(mask))
    counted = mask if numbers.shape == mask.shape else np.ones(numbers.shape, np.bool_)
    changed = before.changed(after)
    if changed[numbers[counted]].any():
        _refuse(
            stream,
            "rows that count change with what stands in the padding: the network is not given the mask, or does not "
            "leave padding out by it, or it is not this layer's mask",
        )
    return bool(counted.all() or changed[numbers[~counted]].any())


def _differ(one: Seen, other: Seen) -> bool:
    return one.leading != other.leading or bool(other.changed(one).any())


def _refuse(stream: str, reason: str) -> NoReturn:
    raise InvalidInputError(f"layer '{stream}': {reason}, {REMEDY}")


@contextmanager
def _observed(model: nn.Module, layers: Sequence[LayerSpec]) -> Iterator[Observed]:
    """Collect the projections of each layer's rows in one forward pass; of its first call where there are several."""
    observed: Observed = {}
    with ExitStack() as stack:
        for layer in layers:
            module = module_of(model, module_name(layer.name))
            hook = _hook(layer, module, observed)
            if layer.side is Side.OUTPUTS:
                stack.callback(module.register_forward_hook(hook).remove)
            else:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield observed


def _hook(layer: LayerSpec, module: nn.Module, observed: Observed) -> Any:
    part = part_of(layer.name, module)

    def see(tensor: torch.Tensor) -> None:
        require_real(layer.stream, tensor)
        if layer.stream not in observed:
            rows = _rows(layer, part, channels_of(layer.name, module, tensor))
            observed[layer.stream] = Seen(rows.leading, _projections(rows))

    if layer.side is Side.OUTPUTS:
        return lambda _module, _arguments, outputs: see(outputs)
    return lambda _module, arguments, keywords: see(first_argument(arguments, keywords))


def _rows(layer: LayerSpec, part: nn.Module, tensor: torch.Tensor) -> LayerRows:
    """Return a layer's rows; in place of patches, which overlap, the pixels that they are made of."""
    if layer.side is Side.OUTPUTS:
        return rows_leaving(part, tensor)
    if layer.side is Side.CHANNELS:
        return rows_of_channels(layer.name, part, tensor, layer.channels)
    if isinstance(part, CONVOLUTIONS) and tensor.ndim == len(part.kernel_size) + 2:
        return LayerRows(tensor.detach().movedim(1, -1), tensor.ndim - 1)
    return rows_entering(layer.name, part, tensor)


def _projections(rows: LayerRows) -> torch.Tensor:
    flat = rows.tensor.reshape(int(np.prod(rows.leading)), -1)
    wide = flat if flat.dtype == torch.float64 else flat.float()
    generator = torch.Generator().manual_seed(flat.shape[1])
    directions = torch.randn(flat.shape[1], PROJECTIONS, generator=generator, dtype=wide.dtype)
    return wide @ directions.to(wide.device)
