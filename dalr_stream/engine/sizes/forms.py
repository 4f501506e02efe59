"""Each layer in the forms that were solved for it, with whom it shares channels: what sizes are chosen among."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.structure.recorded import Groups
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.lowrank.grouped import Factors, GroupedPair
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.selection.nodes import ChannelSelection, SelectedNodes
from dalr_stream.numerics.selection.readers import metric_of_readers
from dalr_stream.numerics.sizes.families import Forms
from dalr_stream.numerics.sizes.head_layer import head_layer
from dalr_stream.numerics.sizes.losses import lost_nats_of_nodes
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import Source
from dalr_stream.numerics.sizes.solved_layers import factor_layer, selection_layer, unchanged_layer
from dalr_stream.numerics.statistics.channels import ChannelGroup, NodeReader
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.types import Vector


@dataclass(frozen=True, slots=True)
class SolvedLayer:
    """What was solved for one layer; None where a family was not, or does not apply."""

    shape: LayerShape
    factors: Factors | None = None
    inputs: InputMoments | None = None
    """On which the factors' losses are measured; needed with factors."""
    selection: ChannelSelection | None = None
    positions: float = 1.0
    """Rows a sample where multiply-adds are counted; 1 where weights are."""
    restore_ridge: float = 1e-3
    """By which the nodes that a selection keeps restore the others."""
    gradients: InputMoments | None = None
    """By the layer's outputs, where they are known: what the loss feels of its factors."""
    readers: tuple[NodeReader, ...] = ()
    """Who reads its nodes, with their gradients: what the loss feels of its selection."""
    heads: HeadFactors | None = None
    """Of the output layer of an attention."""
    attention: Mapping[str, Layer] = field(default_factory=dict)
    """Its four layers, on which the losses of heads are measured; needed with heads."""

    @property
    def nats_of_nodes(self) -> Vector | None:
        """(m + 1,): what the loss of a sample rises by where 0..m nodes are kept; None where that is not known."""
        known = self.readers and all(reader.gradients is not None for reader in self.readers)
        if self.selection is None or not known:
            return None
        metric = metric_of_readers(self.readers, Metric.LOSS, self.selection.method.value)
        nats = None if metric is None else lost_nats_of_nodes(self.selection, metric)
        return None if nats is None else nats / self._draws

    @property
    def _draws(self) -> float:
        """Gradients of a sample's position: a row of the inputs gives as many rows of gradients."""
        if self.gradients is None or self.inputs is None or not self.inputs.count:
            return 1.0
        x, g = self.inputs, self.gradients
        return max((g.count / max(g.samples, 1)) / (x.count / max(x.samples, 1)), 1.0)

    def at_size(
        self, family: Family, size: int, layer: str
    ) -> LowRankLayer | GroupedPair | SelectedNodes | NarrowedHeads:
        """Return what takes the layer's place at a rank, or with so many nodes, or dimensions of its heads.

        `layer` is its name.
        """
        if family is Family.SELECTION and self.selection is not None:
            return self.selection.at_size(size, ridge=self.restore_ridge, layer=layer)
        if family is Family.LOW_RANK and self.factors is not None:
            return self.factors.at_rank(size, layer=layer)
        if family is Family.HEADS and self.heads is not None:
            return self.heads.at_size(size)
        raise InvalidInputError(f"layer '{layer}': nothing of the family {family} was solved")

    def method(self, family: Family) -> Method:
        """Return the method of a family that was solved."""
        solutions = {Family.LOW_RANK: self.factors, Family.SELECTION: self.selection, Family.HEADS: self.heads}
        solution = solutions[family]
        if solution is None:
            raise InvalidInputError(f"nothing of the family {family} was solved")
        return solution.method


def forms_of(layers: Mapping[str, SolvedLayer], structure: Groups | None = None) -> list[Forms]:
    """Return the forms of each layer; without a structure nothing is selected.

    Layers whose nodes are tied share one selection: that of the first of them. Each of `layers` is asked for once, and
    let go before the next: those that are read from a store when they are asked for are never all there.
    """
    alone: dict[str, Forms] = {}
    attentions: dict[str, str] = {}
    for name, layer in layers.items():
        alone[name] = _alone(name, layer)
        if layer.heads is not None:
            attentions |= dict.fromkeys(layer.heads.layout.layers[:-1], name)
    groups = {} if structure is None else _groups([name for name, forms in alone.items() if forms.selected], structure)
    reads: dict[str, list[Source]] = {name: [] for name in alone}
    for first, group in groups.items():
        for reader in group.readers:
            if reader.span.layer in reads:
                outputs = alone[reader.span.layer].unchanged.shape.outputs
                reads[reader.span.layer].append(Source(first, reader.weights // outputs))
    follows = {name: first for first, group in groups.items() for name in group.producers if name != first}

    def among(name: str, forms: Forms) -> Forms:
        sources = tuple(reads[name])
        factored = None if forms.factored is None else replace(forms.factored, reads=sources)
        selected = replace(forms.selected, reads=sources) if forms.selected and name in groups else None
        unchanged = replace(forms.unchanged, reads=sources, follows=follows.get(name), attention=attentions.get(name))
        return Forms(unchanged, factored, selected, forms.narrowed)

    return [among(name, forms) for name, forms in alone.items()]


def _alone(name: str, layer: SolvedLayer) -> Forms:
    """Return the forms of one layer as if it read no other."""
    rows, felt, factored, selected, narrowed = layer.positions, layer.gradients, None, None, None
    if layer.factors is not None and layer.inputs is not None:
        factored = factor_layer(name, layer.factors, layer.inputs, gradients=felt, positions=rows)
    if layer.selection is not None:
        selected = selection_layer(name, layer.selection, layer.shape, nats=layer.nats_of_nodes, positions=rows)
    if layer.heads is not None:
        narrowed = head_layer(name, layer.heads, layer.attention, layer.shape, positions=rows)
    return Forms(unchanged_layer(name, layer.shape, positions=rows), factored, selected, narrowed)


def _groups(selected: Sequence[str], structure: Groups) -> dict[str, ChannelGroup]:
    """Return the groups of channels that can be selected, each by the first of its layers with a selection."""
    groups: dict[str, ChannelGroup] = {}
    tied: set[str] = set()
    for name in selected:
        if name in tied:
            continue
        try:
            groups[name] = group = structure.group_of(name)
        except UnsupportedLayerError:
            continue
        tied.update(group.producers)
    return groups
