"""What compressing layer after layer holds, before the first pass: sums, solving from them, networks, and what is kept.

    a pass      the lanes of its layers and a batch of both networks; then its records, and one layer solved from them
    networks    the one compressed so far, and the one that is made of it
    kept        what modules gave, for the passes that go on from there: within what a memory limit leaves

Layers of a pass are folded together where that fits. What is kept comes last: a batch without room is run from its
inputs in each pass, to the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from dalr_stream.engine.cross.cost import PairMemory, narrowest_pair_load, pair_load
from dalr_stream.engine.fold_passes import direct_plan
from dalr_stream.errors import MemoryLimitError
from dalr_stream.network.layers.groups import parts_of
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of, select_layers
from dalr_stream.network.measure.memory import weights_bytes
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import readers_of
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.streaming.cost import LayerLoad, in_mib
from dalr_stream.streaming.cross_solving_cost import TurnedLayer, pass_solving_bytes
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan

KEPT_BYTES = 2**30
"""The most that is kept of what modules gave, of both networks; less where a memory limit leaves less."""
NETWORKS = 2
"""The one compressed so far, and the one that is made of it."""


@dataclass(frozen=True, slots=True)
class PassCost:
    """What one pass holds."""

    layers: tuple[str, ...]
    folding: MemoryPlan
    solving_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Folding, or solving after it."""
        return max(self.folding.peak_bytes, self.solving_bytes)

    def require(self, limit: int) -> None:
        """Raise MemoryLimitError, with the alternatives, where folding or solving does not fit."""
        self.folding.require()
        if self.solving_bytes > limit:
            raise MemoryLimitError(
                f"layer '{self.layers[0]}': solving at its turn, from moments of two networks, needs "
                f"{in_mib(self.solving_bytes)}, the limit is {in_mib(limit)}: compress all layers at once "
                "(compress.order = 'parallel'), leave the layer out, or raise the limit"
            )


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """What all passes hold."""

    passes: tuple[PassCost, ...]
    networks_bytes: int
    memory_limit_bytes: int | None

    @property
    def pass_bytes(self) -> int:
        """Of the pass that takes most."""
        return max((one.peak_bytes for one in self.passes), default=0)

    @property
    def room_bytes(self) -> int:
        """What is left for what is kept between passes."""
        limit = self.memory_limit_bytes
        return KEPT_BYTES if limit is None else max(0, min(KEPT_BYTES, limit - self.networks_bytes - self.pass_bytes))

    @property
    def moments_bytes(self) -> int:
        """Disk for the moments of all passes."""
        return sum(layer.moments_bytes for one in self.passes for layer in one.folding.layers)

    def peak_bytes(self, kept_bytes: int) -> int:
        """Return the most that is held, where so much would be kept with room for all of it."""
        return self.networks_bytes + self.pass_bytes + min(self.room_bytes, kept_bytes)

    def require(self) -> None:
        """Raise MemoryLimitError where a pass does not fit."""
        for one in self.passes:
            if self.memory_limit_bytes is not None:
                one.require(self.memory_limit_bytes)


@dataclass(frozen=True, slots=True)
class PassesOf:
    """Which passes a network is to go through, and what is made of each layer."""

    model: nn.Module
    passes: Sequence[Sequence[str]]
    methods: Mapping[str, Sequence[Method]]
    """That each layer may be compressed by; what takes most is counted."""
    structure: Structure | None = None
    """Of the model, where a method selects."""
    mending: Collection[str] = ()
    """The layers that are solved towards a stream, and those with the readers of whose nodes that is done."""
    attentions: Mapping[str, HeadLayout] = field(default_factory=dict)
    """Whose heads may get narrower, by their output layers."""


def plan_passes(of: PassesOf, folding: Folding, batch: PairMemory | None = None) -> SequencePlan:
    """Return what the passes hold at most; `batch` is what one takes, where that was looked at.

    An earlier selection may narrow a layer: it is counted as it is in the original.
    """
    costs = []
    for number, group in enumerate(of.passes):
        turned = [layer for name in group for layer in _all_turned(of, name, paired=number > 0)]
        loads = [load for layer in turned for load in _loads(of, layer, batch)]
        fold = direct_plan(loads, folding, 0 if batch is None else batch.forward_bytes)
        costs.append(PassCost(tuple(group), fold, pass_solving_bytes(turned, 1 + (folding.holdout.share > 0))))
    return SequencePlan(tuple(costs), NETWORKS * weights_bytes(of.model), folding.memory_limit_bytes)


def watched_in_passes(
    model: nn.Module,
    names: Sequence[str],
    selected: Sequence[str],
    structure: Structure | None,
    mending: Sequence[str] = (),
) -> list[LayerSpec]:
    """Return what may be read in either network: the layers' inputs, and what reads the channels of those selected.

    What reads those of `mending` is watched for all that it reads, each tap of a kernel.
    """
    specs = {layer.stream: layer for layer in select_layers(model, list(names))}
    if structure is not None and selected:
        specs |= {spec.stream: spec for spec in readers_of(structure, selected)}
        for name in mending:
            specs |= {spec.stream: spec for spec in select_layers(model, structure.group_of(name).reader_names)}
    return list(specs.values())


def _all_turned(of: PassesOf, name: str, *, paired: bool) -> list[TurnedLayer]:
    """Return what is solved at a layer's turn: of heads all four layers, counted as if each got factors, from pairs.

    Those whose gradients weigh the heads are counted as if these weighed factors.
    """
    layer, heads = _turned(of, name, paired=paired), of.attentions.get(name)
    if heads is None or not any(method.family is Family.HEADS for method in of.methods[name]):
        return [layer]
    felt = heads.felt if Method.HEADS_WEIGHTED in of.methods[name] else ()
    factored = {
        one: (Method.DALR_WEIGHTED_AFFINE if one in felt else Method.DALR_ANCHORED_AFFINE,) for one in heads.layers
    }
    others = tuple(method for method in layer.methods if method.family is not Family.HEADS)
    layer = replace(layer, methods=(*others, *factored.pop(name)), paired=True)
    return [*(_turned(replace(of, methods=factored), one, paired=True) for one in factored), layer]


def _turned(of: PassesOf, name: str, *, paired: bool) -> TurnedLayer:
    layer, methods = layer_of(of.model, name), tuple(of.methods[name])
    outputs, inputs = matrix_of(layer).shape
    groups = len(parts_of(name, layer))
    readers = tuple(spec.features for spec in _readers(of, name, methods))
    refits = tuple((spec.outputs, spec.inputs) for spec in _refitted(of, name, methods)) if paired else ()
    return TurnedLayer(name, outputs // groups, inputs, methods, groups, readers, paired, name in of.mending, refits)


def _loads(of: PassesOf, layer: TurnedLayer, batch: PairMemory | None) -> list[LayerLoad]:
    """Return the streams that a pass folds for a layer; where it may be either form, those that take more."""
    specs, readers = select_layers(of.model, [layer.name]), _readers(of, layer.name, layer.methods)
    if not layer.paired:
        factors = [_repeated(spec, 1, batch) for spec in specs]
    elif layer.mends:
        factors = [pair_load(spec, 0, batch, mends=True) for spec in specs]
    else:
        factors = [narrowest_pair_load(spec, 0, batch) for spec in specs]
    nodes = [_repeated(spec, 1 + layer.paired, batch) for spec in readers]
    refits = [
        pair_load(spec, 0, batch, mends=True) for spec in _refitted(of, layer.name, layer.methods) if layer.paired
    ]
    nodes = max(nodes, refits, key=lambda loads: sum(load.features**2 for load in loads))
    if nodes and all(method.family is Family.SELECTION for method in layer.methods):
        return nodes
    return max(factors, nodes, key=lambda loads: sum(load.features**2 for load in loads))


def _repeated(spec: LayerSpec, times: int, batch: PairMemory | None) -> LayerLoad:
    """Return a load of the same stream of one network or of both."""
    features = times * spec.features
    return LayerLoad(
        spec.stream, features, 0, batch_bytes=0 if batch is None else batch.batch_bytes(spec.stream, features)
    )


def _readers(of: PassesOf, name: str, methods: Sequence[Method]) -> tuple[LayerSpec, ...]:
    selects = of.structure is not None and any(method.family is Family.SELECTION for method in methods)
    return readers_of(of.structure, [name]) if of.structure is not None and selects else ()


def _refitted(of: PassesOf, name: str, methods: Sequence[Method]) -> tuple[LayerSpec, ...]:
    """Return what reads a selection's nodes, with all that it reads, where it is solved towards a stream."""
    if of.structure is None or name not in of.mending or not _readers(of, name, methods):
        return ()
    return select_layers(of.model, of.structure.group_of(name).reader_names)
