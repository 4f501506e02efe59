"""Takes rows inside the hooks of one forward pass, as tensors, of all calls of each layer.

A layer that is called several times, by every block of an ALBERT or by two towers, applies one matrix to the rows of
all of its calls. So they are rows of one record: of each sample those of the first call, then those of the second, and
so on. How often it is called is found out on the first batch, and holds for all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.additions import Additions, Before
from dalr_stream.network.capture.batches import call, first_argument, require_mask_passed_on
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.ends import End
from dalr_stream.network.capture.gradients.taking import GradientTaker
from dalr_stream.network.capture.masks import BatchMasks, require_a_mask_each
from dalr_stream.network.capture.proofs.proof import CaptureProof
from dalr_stream.network.capture.reading import Reading
from dalr_stream.network.capture.resuming.onward import ForwardRun, ResumedPass
from dalr_stream.network.capture.routed import Routes, require_not_routed
from dalr_stream.network.capture.row_rule import BatchRows, RowRule
from dalr_stream.network.capture.taken import Taken, together
from dalr_stream.network.layers.groups import channels_of, part_of
from dalr_stream.network.layers.kinds import (
    CONVOLUTIONS,
    require_supported,
    rows_entering,
    rows_leaving,
    rows_of_channels,
    way_of_reading,
)
from dalr_stream.network.layers.readable import require_readable
from dalr_stream.network.layers.spec import LayerSpec, module_of
from dalr_stream.numerics.rows.streams import Side, module_name

Calls = dict[str, list[Taken]]
"""By stream: what was taken at each call of the layer, in their order."""


class RowTaker:
    """Takes the rows of a network's layers batch after batch; on the first one it is proved whose they are."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[LayerSpec],
        rule: RowRule,
        *,
        paired: bool = False,
        onward: ResumedPass | None = None,
    ) -> None:
        """Take outputs where inputs are taken if `paired`; `onward` runs on from a pass, and has what is proved."""
        self._model = model
        self._layers = layers
        self._rule = rule
        self._paired = paired
        self._times: dict[str, int] | None = None
        self._routed: dict[str, int] = {}
        """Rows so far of the layers that a router sends them to."""
        self._number = 0
        self._onward = onward
        self._by_blocks = onward is not None and onward.by_blocks
        self._proof = CaptureProof(model, layers) if rule.prove and onward is None else None
        by_outputs = [layer for layer in layers if layer.side is Side.GRADIENTS]
        self._gradients = GradientTaker(model, by_outputs, rule.gradients or GradientRule())

    @property
    def notes(self) -> Iterator[str]:
        """What was found out and one may not expect: rows that are not in sample order, or of several calls."""
        orders = {} if self._proof is None else self._proof.proved
        turned = [stream for stream, calls in orders.items() if any(order and order.turns for order in calls)]
        if turned:
            yield f"capture: rows come position after position, and are taken by sample, of {', '.join(turned)}"
        often = [f"'{stream}' ({times} calls)" for stream, times in (self._times or {}).items() if times > 1]
        if often:
            yield f"capture: the rows of all calls in a forward pass are taken together of {', '.join(often)}"
        if self._routed:
            yield f"capture: a router decides which rows of each sample reach {', '.join(self._routed)}"
        unreached = [stream for stream, rows in self._routed.items() if not rows]
        if unreached:
            yield f"capture: no row reached {', '.join(unreached)}: more samples may, or leave them out"
        tables = [stream for stream, calls in orders.items() if any(order and order.of_every_sample for order in calls)]
        if tables:
            yield f"capture: each sample is taken to read all rows of a table, which have none, of {', '.join(tables)}"

    def take(
        self, batch: Any, samples: int, first_sample: int, masks: BatchMasks | None, *, number: int = 0
    ) -> dict[str, Taken]:
        """Return the chosen rows of each layer in one batch, by stream; raises InvalidInputError where a proof fails.

        `first_sample` is the number of the batch's first sample within its domain, `number` that of the batch, for
        messages.
        """
        self._number = number
        if self._times is None:
            require_mask_passed_on(self._model, batch)
        proof = self._proof
        known = None if self._onward is None else self._onward.orders
        orders = known if proof is None else proof.orders(batch, samples)
        if proof is not None:
            self._gradients.prove(batch, samples, orders, number=number)
        chooser = BatchRows(self._rule, samples, first_sample, masks, orders=orders, paired=self._paired)
        if self._onward is not None:
            for layer in () if self._by_blocks else self._layers:
                require_not_routed(layer.stream, routed=chooser.is_routed(layer.stream))
            return self._onward.take(lambda run: self._pooled(self._calls(batch, chooser, run), samples), first_sample)
        if proof is None:
            return self._pooled(self._calls(batch, chooser), samples)
        for layer in self._layers if self._paired else ():
            require_not_routed(layer.stream, routed=chooser.is_routed(layer.stream))
        by_stream = {layer.stream: chooser.masks_of(layer.stream) for layer in self._layers}
        calls = self._calls(batch, chooser, observing=proof.observing(batch, by_stream))
        proof.settle(by_stream, {} if masks is None else masks.padding)
        return self._pooled(calls, samples)

    def _calls(
        self,
        batch: Any,
        chooser: BatchRows,
        run: ForwardRun | None = None,
        observing: AbstractContextManager[Any] | None = None,
    ) -> Calls:
        """Run the network; raises UnsupportedLayerError for a layer that it does not call as often as it should.

        `observing` is around the way forward alone: on the way back a network that keeps no values between (activation
        checkpointing) calls its layers again.
        """
        until = None if run is None or self._by_blocks else self._until_all(run)
        with self._gradients.following(chooser, run) as edges:
            with observing or nullcontext(), _watched(self._model, self._layers, chooser, until) as calls:
                returned = (run or call)(self._model, batch)
            times = {layer.stream: len(calls[layer.stream]) for layer in self._layers}
            times |= {stream: len(given) for stream, given in edges.items()}
            self._require_called(times, chooser)
            for layer in self._layers:
                routed = chooser.is_routed(layer.stream)
                require_a_mask_each(layer.stream, chooser.masks_of(layer.stream), times[layer.stream], routed=routed)
            end = End(returned, batch, chooser.samples, self._number)
            gradients = self._gradients.take(edges, end, chooser, self._number, run)
        calls |= {stream: [taken] for stream, taken in gradients.items()}
        for layer in self._layers:
            if chooser.is_routed(layer.stream):
                calls[layer.stream] = [self._of_expert(layer, calls[layer.stream], chooser.samples)]
        return calls

    def _require_called(self, times: dict[str, int], chooser: BatchRows) -> None:
        """Raise UnsupportedLayerError for a layer that is not called as often as in the first batch."""
        for layer in self._layers:
            if chooser.is_routed(layer.stream):
                times[layer.stream] = 1
                continue
            if not times[layer.stream]:
                raise UnsupportedLayerError(f"layer '{layer.name}': {_never(layer)} in a forward pass of this batch")
            before = times[layer.stream] if self._times is None else self._times[layer.stream]
            if before != times[layer.stream]:
                raise UnsupportedLayerError(
                    f"layer '{layer.name}': is called {times[layer.stream]} times in a forward pass of this batch, and "
                    f"was called {before} times in the first one: let the network call it as often for every batch, or "
                    "leave the layer out"
                )
        self._times = times

    def _of_expert(self, layer: LayerSpec, calls: Sequence[Taken], samples: int) -> Taken:
        """Return the rows of a layer that is routed to, where there are any, and take note of how many."""
        if calls:
            taken = together(calls, samples)
        else:
            weight: Any = module_of(self._model, module_name(layer.name)).weight
            taken = Taken(weight.new_zeros((0, layer.features)).detach(), np.zeros(samples, np.int64))
        self._routed[layer.stream] = self._routed.get(layer.stream, 0) + len(taken.rows)
        return taken

    def _until_all(self, run: ForwardRun) -> Callable[[Calls], None] | None:
        """Return what tells `run` that all rows are there; None where it is not known how often layers are called."""
        orders = (self._onward.orders if self._onward else None) or {}
        times = self._times or {layer.stream: len(orders.get(layer.placed_as, ())) for layer in self._layers}

        def taken(calls: Calls) -> None:
            if all(len(calls[stream]) == number for stream, number in times.items()):
                run.rows_taken()

        return taken if all(times.values()) else None

    def _pooled(self, calls: Calls, samples: int) -> dict[str, Taken]:
        """Return the rows of all calls of each layer; layers that took the very same ones get the very same."""
        pooled: dict[tuple[int, ...], Taken] = {}
        for taken in calls.values():
            pooled.setdefault(_identities(taken), together(taken, samples))
        return {layer.stream: pooled[_identities(calls[layer.stream])] for layer in self._layers}


def _never(layer: LayerSpec) -> str:
    return "what it gives is added to no stream" if layer.side is Side.RESIDUAL else "is never called"


def _identities(taken: Sequence[Taken]) -> tuple[int, ...]:
    return tuple(map(id, taken))


@contextmanager
def _watched(
    model: nn.Module, layers: Sequence[LayerSpec], chooser: BatchRows, taken: Callable[[Calls], None] | None = None
) -> Iterator[Calls]:
    """Collect the chosen rows of each layer during one forward pass; the hooks are gone when the block ends.

    `taken` is told after each of them what there is so far.
    """
    watch = _Watch(
        chooser, layers, Routes(model, (layer.name for layer in layers if chooser.is_routed(layer.stream))), taken
    )
    into_a_stream = any(layer.side is Side.RESIDUAL for layer in layers)
    with watch.routes.watching(), watch.additions.watching(needed=into_a_stream), ExitStack() as stack:
        for layer in layers:
            if layer.side is not Side.GRADIENTS:
                stack.callback(watch.hook(layer, model).remove)
        yield watch.calls


class _Watch:
    """Takes rows inside the hooks of one forward pass; layers that read one tensor get the same `Taken`.

    See `reading` for when they do; in inference mode none do.
    """

    def __init__(
        self,
        chooser: BatchRows,
        layers: Sequence[LayerSpec],
        routes: Routes,
        taken: Callable[[Calls], None] | None = None,
    ) -> None:
        self.calls: Calls = {layer.stream: [] for layer in layers}
        self.routes = routes
        self.additions = Additions()
        self._taken = taken
        self._chooser = chooser
        self._reads: dict[Reading, Taken] = {}

    def hook(self, layer: LayerSpec, model: nn.Module) -> torch.utils.hooks.RemovableHandle:
        module = module_of(model, module_name(layer.name))
        part = part_of(layer.name, module)
        given = layer.side in (Side.OUTPUTS, Side.RESIDUAL)
        if not given or not isinstance(part, CONVOLUTIONS):  # what any of them gives is rows
            require_supported(layer.name, part)
        calls = self.calls[layer.stream]
        if self._chooser.is_routed(layer.stream):
            return module.register_forward_hook(self._routed(layer, part), with_kwargs=True)

        def entering(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            tensor = channels_of(layer.name, module, first_argument(arguments, keywords))
            require_readable(layer.stream, tensor)
            if layer.side is Side.CHANNELS:
                way: tuple[Any, ...] = ("channels", layer.channels, layer.repeats)
                rows = rows_of_channels(layer.name, part, tensor, layer.channels, layer.repeats)
            else:
                way, rows = way_of_reading(part), rows_entering(layer.name, part, tensor)
            taken = self._chooser.take(layer.stream, rows, len(calls))
            before = self._reads.setdefault(Reading.of(tensor, way), taken)
            self._keep(calls, before if before.same_as(taken) else taken)

        def leaving(_: nn.Module, __: tuple[Any, ...], outputs: torch.Tensor) -> None:
            given = channels_of(layer.name, module, outputs)
            require_readable(layer.stream, given)
            self._keep(calls, self._chooser.take(layer.stream, rows_leaving(part, given), len(calls)))

        def before(other: torch.Tensor) -> None:
            rows = rows_leaving(part, channels_of(layer.name, module, other))
            self._keep(calls, self._chooser.take(layer.placed_as, rows, len(calls), paired=True))

        if layer.side is Side.RESIDUAL:
            return module.register_forward_hook(lambda _, __, output: self.additions.follow(output, Before(before)))
        if layer.side is Side.OUTPUTS:
            return module.register_forward_hook(leaving)
        return module.register_forward_pre_hook(entering, with_kwargs=True)

    def _routed(self, layer: LayerSpec, part: nn.Module) -> Any:
        """Return the hook of a layer that a router sends rows to; what it shares with others is not looked for."""
        calls = self.calls[layer.stream]

        def left(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], outputs: torch.Tensor) -> None:
            read = first_argument(arguments, keywords)
            places = self.routes.places(layer.name, read, self._chooser.samples)
            rows = rows_leaving(part, outputs) if layer.side is Side.OUTPUTS else rows_entering(layer.name, part, read)
            self._keep(calls, self._chooser.take_routed(layer.stream, rows, places))

        return left

    def _keep(self, calls: list[Taken], taken: Taken) -> None:
        calls.append(taken)
        if self._taken is not None:
            self._taken(self.calls)
