"""How the passes of sequential compression go on from one another: where each network is left, and begun again.

    the network as compressed so far    left before the first layer that this pass, or a later one, reads or changes
    the original                        left before the first one that a later pass reads

A layer's pass thus runs what lies between the layer before it and itself, in either network. A selection changes the
layers that give its channels, those that carry them and those that read them; a factor pair its own layer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.onward import Done, OnwardPass, Room, Stream, require_onward
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.proved import prove
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec, select_layers
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import readers_of
from dalr_stream.numerics.rows.streams import Side, module_name

KEPT_BYTES = 2**30
"""Of what modules gave, for both networks, where no memory limit says otherwise."""


@dataclass(slots=True)
class OnwardPasses:
    """What is kept of both networks between the passes, and what is proved of them before the first."""

    original: nn.Module
    touched: Sequence[Collection[str]]
    """By pass: the layers that it reads or changes."""
    done: Sequence[Done] | None
    """By pass: what has been called before these layers, and those of later passes; None where nothing is kept."""
    orders: Orders | None
    note: Callable[[str], None]
    room: Room
    now: Stream = field(init=False)
    then: Stream = field(init=False)
    _number: int = 0

    def __post_init__(self) -> None:
        self.now, self.then = Stream(self.room), Stream(self.room)

    def begin(self, number: int) -> None:
        """Take note of which pass it is."""
        self._number = number

    def compressed(self, layers: Iterable[LayerSpec], targets: Mapping[str, LayerSpec] | None = None) -> OnwardPass:
        """Return the pass of the network as compressed so far; `targets` has the original's layers by stream."""
        layers, orders = list(layers), self.orders
        if orders is not None and targets:
            orders = {**orders, **{name: orders[t.stream] for name, t in targets.items() if t.stream in orders}}
        return self._pass(self.now, layers, self._number, orders)

    def of_original(self, layers: Iterable[LayerSpec]) -> OnwardPass:
        """Return that of the original."""
        return self._pass(self.then, list(layers), self._number + 1, self.orders)

    def end(self, before: nn.Module, after: nn.Module) -> None:
        """Compare what stands for modules that are not run again with the network that was made in this pass."""
        if before is self.original:
            self.then.same_as(self.now)
        changed = next((name for name in self._kept() if not _alike(before, after, name)), None)
        if changed is not None:
            self.note(f"'{changed}' changed: the compressed network runs from its inputs again")
            self.now.forget()
        if self.room.refused:
            self.room.refused = False
            self.note("not all of what is kept between the passes has room: those batches run from their inputs")

    def _kept(self) -> list[str]:
        return [] if self.done is None else [way[-1][0] for way in self.done[self._number]]

    def _pass(self, stream: Stream, layers: Sequence[LayerSpec], place: int, orders: Orders | None) -> OnwardPass:
        keep = self.done[place] if self.done is not None and place < len(self.done) else None
        last = self._number + 1 == len(self.touched)
        names = [module_name(layer.name) for layer in layers]
        untried = self._number & (self._number - 1) == 0
        return OnwardPass(names, stream, None if last else keep, orders, self.note, tried=not untried)


def onward_passes(
    model: nn.Module,
    batches: Iterable[Any],
    first: Any,
    passes: Sequence[Sequence[str]],
    selected: Collection[str],
    rule: RowRule,
    room_bytes: int,
    note: Callable[[str], None],
) -> OnwardPasses:
    """Prove what the passes rely on; `selected` are the layers whose nodes are selected."""
    structure = Structure.of(model, first) if selected else None
    specs: dict[str, LayerSpec] = {}
    touched: list[set[str]] = []
    for group in passes:
        if group[0] in selected:
            assert structure is not None  # noqa: S101  # for the type checker: something is selected
            specs |= {spec.stream: spec for spec in readers_of(structure, group)}
            touched.append({name for layer in group for name in _of_group(structure, layer)})
        else:
            for side in (Side.INPUTS, Side.OUTPUTS):
                specs |= {spec.stream: spec for spec in select_layers(model, list(group), side=side)}
            touched.append(set(group))
    orders = prove(model, batches, list(specs.values()), rule)
    done: Sequence[Done] | None = None
    if len(passes) > 1:
        try:
            done = require_onward(model, first, [set().union(*touched[number:]) for number in range(len(passes))])
        except UnsupportedLayerError as error:
            note(f"each pass runs both networks from their inputs, as they cannot be run on from kept values: {error}")
    return OnwardPasses(model, touched, done, orders, note, Room(room_bytes))


def _of_group(structure: Structure, layer: str) -> set[str]:
    """Return the layers that a selection changes or reads."""
    group = structure.group_of(layer)
    spans = (*group.carriers, *(reader.span for reader in group.readers))
    return {*group.producers, *(span.layer for span in spans)}


def _alike(before: nn.Module, after: nn.Module, name: str) -> bool:
    """Tell whether a module has the same tensors in both networks."""
    one, other = (dict(_tensors(network.get_submodule(name))) for network in (before, after))
    return one.keys() == other.keys() and all(
        tensor.shape == other[key].shape and torch.equal(tensor, other[key]) for key, tensor in one.items()
    )


def _tensors(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
