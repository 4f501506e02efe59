"""Each layer in the forms that were solved for it, with whom it shares channels: what sizes are chosen among."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.families import Forms
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import Source, factor_layer, selection_layer, unchanged_layer
from dalr_stream.numerics.statistics.channels import ChannelGroup
from dalr_stream.numerics.statistics.grouped import InputMoments


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


def forms_of(layers: Mapping[str, SolvedLayer], structure: Structure | None = None) -> list[Forms]:
    """Return the forms of each layer; without a structure nothing is selected.

    Layers whose nodes are tied share one selection: that of the first of them.
    """
    groups = {} if structure is None else _groups(layers, structure)
    reads: dict[str, list[Source]] = {name: [] for name in layers}
    for first, group in groups.items():
        for reader in group.readers:
            if reader.span.layer in reads:
                outputs = layers[reader.span.layer].shape.outputs
                reads[reader.span.layer].append(Source(first, reader.weights // outputs))
    follows = {name: first for first, group in groups.items() for name in group.producers if name != first}
    return [_forms(name, one, reads[name], name in groups, follows.get(name)) for name, one in layers.items()]


def _forms(name: str, layer: SolvedLayer, reads: list[Source], decides: bool, follows: str | None) -> Forms:
    where = {"reads": reads, "positions": layer.positions}
    factored = selected = None
    if layer.factors is not None and layer.inputs is not None:
        factored = factor_layer(name, layer.factors, layer.inputs, reads=reads, positions=layer.positions)
    if layer.selection is not None and decides:
        selected = selection_layer(name, layer.selection, layer.shape, reads=reads, positions=layer.positions)
    return Forms(unchanged_layer(name, layer.shape, follows=follows, **where), factored, selected)


def _groups(layers: Mapping[str, SolvedLayer], structure: Structure) -> dict[str, ChannelGroup]:
    """Return the groups of channels that can be selected, each by the first of its layers with a selection."""
    groups: dict[str, ChannelGroup] = {}
    tied: set[str] = set()
    for name, layer in layers.items():
        if layer.selection is None or name in tied:
            continue
        try:
            groups[name] = group = structure.group_of(name)
        except UnsupportedLayerError:
            continue
        tied.update(group.producers)
    return groups
