"""How each pass of sequential compression resumes where the one before ended.

    the network as compressed so far    left before the first layer that this pass, or a later one, reads or changes
    the original                        left before the first one that a later pass reads

A layer's pass thus runs what lies between the layer before it and itself, in either network. A selection changes the
layers that give its channels, those that carry them and those that read them; narrower heads all four layers of their
attention; a factor pair its own layer alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.proofs.proved import prove
from dalr_stream.network.capture.resuming.kept_states import Room, Stream
from dalr_stream.network.capture.resuming.onward import Done, OnwardPass, held_of_sample, require_onward
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec, select_layers
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import readers_of
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.rows.streams import Side, module_name
from dalr_stream.streaming.cost import in_mib


@dataclass(frozen=True, slots=True)
class _Proved:
    """What is found out before the first pass that runs the networks."""

    done: Sequence[Done] | None
    """By pass: what has been called before the layers that it reads or changes, and those of later passes; None where
    nothing is kept."""
    orders: Orders | None
    """Of the rows of all layers that are read."""


@dataclass(slots=True)
class OnwardPasses:
    """What is kept of both networks between the passes, and what is proved of them before the first that runs them."""

    original: nn.Module
    batches: SameEveryPass
    passes: Sequence[Sequence[str]]
    selected: Collection[str]
    """The layers whose nodes are selected; the others become factor pairs."""
    mending: Collection[str]
    """The layers that are solved towards a stream, readers of selections among them: their outputs are watched."""
    rule: RowRule
    room: Room
    note: Callable[[str], None]
    orders_of: Callable[[Sequence[LayerSpec]], Orders | None] | None = None
    """What is proved already of the order of rows; None to prove it on the batches."""
    orders_of_source: Orders | None = None
    """The same of the source domain's rows, where `orders_of` says so of the target's."""
    attentions: Mapping[str, HeadLayout] = field(default_factory=dict)
    """Whose heads get narrower, by their output layers."""
    _now: Stream = field(init=False)
    _then: Stream = field(init=False)
    _number: int = 0
    _known: _Proved | None = None

    def __post_init__(self) -> None:
        self._now, self._then = Stream(self.room), Stream(self.room)

    def begin(self, group: Sequence[str]) -> None:
        """Take note of which pass it is."""
        self._number = self.passes.index(group)

    def of_compressed(self, layers: Iterable[LayerSpec], targets: Mapping[str, LayerSpec] | None = None) -> OnwardPass:
        """Return the pass of the network as compressed so far; `targets` are the same layers in the original."""
        orders = self._proved().orders
        if orders is not None and targets:
            orders = {**orders, **{name: orders[t.stream] for name, t in targets.items() if t.stream in orders}}
        return self._pass(self._now, layers, self._number, orders)

    def of_original(self, layers: Iterable[LayerSpec]) -> OnwardPass:
        """Return that of the original."""
        return self._pass(self._then, layers, self._number + 1, self._proved().orders)

    def of_source(self, layers: Iterable[LayerSpec]) -> OnwardPass | None:
        """Return the pass of that network over the source domain, which nothing is kept of; None to prove its rows."""
        if self.orders_of is None:
            return None
        names = [module_name(layer.name) for layer in layers]
        return OnwardPass(names, Stream(Room(0)), None, self.orders_of_source, self.note, tried=True)

    def end(self, before: nn.Module, after: nn.Module) -> None:
        """Compare what stands for modules that are not run again with the network that was made in this pass."""
        if self._known is None:
            return
        if before is self.original:
            self._then.same_as(self._now)
        done = self._known.done
        kept = [] if done is None else [way[-1][0] for way in done[self._number]]
        changed = next((name for name in kept if not _alike(before, after, name)), None)
        if changed is not None:
            self.note(f"'{changed}' changed: the compressed network runs from its inputs again")
            self._now.forget()
        if self.room.refused:
            self.room.refused = False
            self.note(
                "not all batches fit into what is kept between passes: "
                f"{len(self._now.states)} of the compressed network's and {len(self._then.states)} of the original's "
                f"do, in {in_mib(self.room.held_bytes)}; the others run from their inputs, to the same bits"
            )

    def _pass(self, stream: Stream, layers: Iterable[LayerSpec], place: int, orders: Orders | None) -> OnwardPass:
        """Return a pass that leaves the network at a place: at none for the last one."""
        done, last = self._proved().done, self._number + 1 == len(self.passes)
        keep = None if done is None or last else done[place]
        tried = self._number & (self._number - 1) != 0
        return OnwardPass([module_name(layer.name) for layer in layers], stream, keep, orders, self.note, tried)

    def _proved(self) -> _Proved:
        if self._known is None:
            first = self.batches.first()
            specs, touched = touched_by(self.original, first, self.passes, self.selected, self.mending, self.attentions)
            known = self.orders_of
            orders = prove(self.original, self.batches, specs, self.rule) if known is None else known(specs)
            self._known = _Proved(self._done(touched) if len(self.passes) > 1 else None, orders)
        return self._known

    def _done(self, touched: Sequence[Collection[str]]) -> Sequence[Done] | None:
        try:
            return require_onward(self.original, self.batches.first(), _places(touched))
        except UnsupportedLayerError as error:
            self.note(f"each pass runs both networks from their inputs; they cannot resume from kept values: {error}")
            return None


def kept_of_sample(
    model: nn.Module,
    batch: Any,
    passes: Sequence[Sequence[str]],
    selected: Collection[str],
    attentions: Mapping[str, HeadLayout] | None = None,
) -> int:
    """Return the most that is kept of one sample between two passes, of both networks; 0 where nothing can be.

    Cost: a few forward passes of two samples.
    """
    if len(passes) < 2:
        return 0
    _, touched = touched_by(model, batch, passes, selected, (), attentions)
    try:
        held = held_of_sample(model, batch, _places(touched))
    except UnsupportedLayerError:
        return 0
    return max(one + other for one, other in itertools.pairwise(held))


def _places(touched: Sequence[Collection[str]]) -> list[set[str]]:
    """Return, for each pass, the layers that it or a later one reads or changes."""
    return [set[str]().union(*touched[number:]) for number in range(len(touched))]


def touched_by(
    model: nn.Module,
    batch: Any,
    passes: Sequence[Sequence[str]],
    selected: Collection[str],
    mending: Collection[str],
    attentions: Mapping[str, HeadLayout] | None = None,
) -> tuple[list[LayerSpec], list[set[str]]]:
    """Return what is read in the original, and by pass the layers that it reads or changes."""
    structure = Structure.of(model, batch) if selected else None
    specs: dict[str, LayerSpec] = {}
    touched: list[set[str]] = []
    for group in passes:
        if structure is not None and group[0] in selected:
            readers = readers_of(structure, group)
            mended = [spec.name for spec in readers if spec.name in mending]
            specs |= {spec.stream: spec for spec in readers}
            for side in (Side.INPUTS, Side.OUTPUTS) if mended else ():
                specs |= {spec.stream: spec for spec in select_layers(model, mended, side=side)}
            touched.append({name for layer in group for name in _of_group(structure, layer)})
        else:
            heads = (attentions or {}).get(group[0])
            names = list(group if heads is None else heads.layers)
            for side in (Side.INPUTS, Side.OUTPUTS):
                specs |= {spec.stream: spec for spec in select_layers(model, names, side=side)}
            touched.append(set(names))
    return list(specs.values()), touched


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
