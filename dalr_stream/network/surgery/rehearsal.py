"""Whether layers can be replaced, tried before anything is measured: with pairs of rank 1, or some nodes, on a batch.

What stands in the way of surgery does not depend on the numbers: a layer held elsewhere, a parent that wants the old
one's class, a network that has the number of channels written into it. So all layers are replaced at once by stand-ins,
and the result is proved as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.groups import parts_of
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.compress import compress, compressed
from dalr_stream.network.surgery.heads import halved
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.selection.nodes import SelectedNodes


def require_replaceable_by_pairs(model: nn.Module, layers: Iterable[str], example: Any) -> None:
    """Raise UnsupportedLayerError for the first of `layers` in whose place the network would not take a factor pair.

    `example` is a batch or a `Structure`, as `compress` takes it. Cost: a copy of the network and two forward passes of
    two samples; of each layer by itself where all of them together fail.
    """
    names = list(dict.fromkeys(map(module_name, layers)))
    try:
        _replace(model, names, example)
    except UnsupportedLayerError:
        for name in names:
            _replace(model, [name], example)
        raise


def try_selections(structure: Structure, layers: Iterable[str]) -> None:
    """Let `structure` refuse the groups of `layers` without some of whose channels the network would not be as before.

    Cost: a copy of the network and two forward passes of two samples; of each group by itself where all of them
    together fail.
    """
    names = _of_groups(structure, layers)
    try:
        _narrow(structure, names)
    except UnsupportedLayerError:
        for name in names:
            try:
                _narrow(structure, [name])
            except UnsupportedLayerError as error:
                structure.refuse(name, error)


def try_heads(structure: Structure, found: Mapping[str, HeadLayout | str]) -> dict[str, HeadLayout | str]:
    """Return the attentions with which the network computes what it should where heads are half as large; or why not.

    Cost: a copy of the network and a few forward passes of two samples for each attention; of each by itself where all
    of them together fail.
    """
    layouts = {name: layout for name, layout in found.items() if isinstance(layout, HeadLayout)}
    tried: dict[str, HeadLayout | str] = dict(found)
    try:
        _narrow_heads(structure, layouts)
    except UnsupportedLayerError:
        for name, layout in layouts.items():
            try:
                _narrow_heads(structure, {name: layout})
            except UnsupportedLayerError as error:
                tried[name] = str(error)
    return tried


def _narrow_heads(structure: Structure, layouts: Mapping[str, HeadLayout]) -> None:
    if layouts:
        halves = {name: halved(layout) for name, layout in layouts.items()}
        compress(structure.model, halves, example=structure)


def _of_groups(structure: Structure, layers: Iterable[str]) -> list[str]:
    """Return one layer of each group of more than one channel."""
    groups: dict[tuple[str, ...], str] = {}
    for name in map(module_name, layers):
        try:
            group = structure.group_of(name)
        except UnsupportedLayerError:
            continue
        if group.channels > 1:
            groups.setdefault(group.producers, name)
    return list(groups.values())


def _narrow(structure: Structure, names: Iterable[str]) -> None:
    selections = {name: _some_nodes(structure.group_of(name).channels) for name in names}
    compressed(structure.model, selections, structure, shared=True)


def _some_nodes(channels: int) -> SelectedNodes:
    """Leave out channels from the first to the last, so that what numbers them shows.

    What splits them into equal parts, or has their number as a factor, shows where the number that stay has no factor
    in common with it; and more than one stay where there are, as a single one fits any width.
    """
    stay = next((k for k in range(channels // 2 + 1, channels) if math.gcd(k, channels) == 1), 1)
    gone = np.linspace(0, channels - 1, channels - stay).round().astype(np.int64)
    kept = np.delete(np.arange(channels), gone)
    return SelectedNodes(kept, np.eye(channels)[:, kept], np.zeros(channels), 1.0)


def _replace(model: nn.Module, names: Iterable[str], example: Any) -> None:
    parts = [part for name in names for part in parts_of(name, layer_of(model, name))]
    pairs = {part: _smallest_pair(layer_of(model, part)) for part in parts}
    compressed(model, pairs, example, shared=True)


def _smallest_pair(layer: nn.Module) -> LowRankLayer:
    outputs, inputs = matrix_of(layer).shape
    return LowRankLayer(np.zeros((1, inputs)), np.zeros((outputs, 1)), np.zeros(outputs))
