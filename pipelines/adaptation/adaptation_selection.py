"""From a trained network and rows of two domains to what MoMaSP's section 4 compares.

Statistics are additive, so the three data settings are sums of three records: two halves of the target and the source.
The channels of the three convolutions are selected as the nodes of the dense layers are, all from the statistics of the
uncompressed network. A rate is the share of the whole network's parameters that goes; it is reached with one retention
alpha for all layers: the largest that leaves so few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import nn

import dalr_stream as ds
from dalr_stream.network import Structure
from labelled_batches import Batches

LAYERS = ("generator.conv[123]", "generator.fc1", "classifier.fc2")
"""Patterns of the layers that are compressed: all but the last, whose nodes are the classes."""
RESTORE_RIDGE = 1e-3
"""As in run files."""
ALONE = 1e9
"""A strength at which the information decides nothing but ties: selection by the regulariser alone."""

Selections = Mapping[str, ds.ChannelSelection]
NodeMoments = Mapping[str, ds.Moments]
"""By layer, of its nodes or channels as their reader sees them."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Moments of the nodes: on each half of the target's rows, and on the source's."""

    first_half: NodeMoments
    second_half: NodeMoments
    source: NodeMoments

    @classmethod
    def of(cls, network: nn.Module, target: Batches, source: Batches) -> Statistics:
        """Fold the rows; the target's are dealt alternately."""
        halves = [Batches(target.inputs[i::2], target.labels[i::2], target.batch_size) for i in range(2)]
        return cls(*(node_moments(network, rows) for rows in (*halves, source)))

    @property
    def settings(self) -> dict[str, NodeMoments]:
        """The three settings of section 4.2, by name."""
        return {
            "target": _sum(self.first_half, self.second_half),
            "target/source": _sum(self.first_half, self.source),
            "target+source": _sum(self.first_half, self.second_half, self.source),
        }

    def spectral(self, setting: str) -> Selections:
        """Spectral pruning from one of the settings."""
        return {layer: ds.spectral(moments) for layer, moments in self.settings[setting].items()}

    def momasp(self, form: ds.numerics.Form | str, strength: float) -> Selections:
        """MoMaSP: the target informs, the source regularises."""
        return {
            layer: ds.momasp(moments, self.source[layer], form=form, strength=strength)
            for layer, moments in self.settings["target"].items()
        }


def node_moments(network: nn.Module, rows: Batches) -> NodeMoments:
    """Moments of the layers' nodes after the nonlinearity; a convolution's rows are all positions."""
    watched = ds.watch(network, LAYERS, example=rows.inputs)
    every = ds.Folding(holdout=ds.HoldoutRule(0.0))
    found = ds.accumulate(network, rows, watched, rows=ds.RowRule(most_patches=None), folding=every)
    return {layer.name: found[layer.name].nodes for layer in watched if layer.group is not None}


def sizes_at_rate(network: nn.Module, selections: Selections, rate: float) -> dict[str, int]:
    """Return the nodes of each layer that stay at the largest common retention with 1 - `rate` of the parameters left.

    Raises ValueError where even one node a layer leaves more.
    """
    allowed = (1.0 - rate) * parameters(network, {})
    retentions = np.unique(np.concatenate([selection.retention for selection in selections.values()]))
    sizes = [_sizes(selections, 0.0)]
    low, high = 0, retentions.size  # the first `low` are allowed, those from `high` on are not
    while low < high:
        middle = (low + high) // 2
        tried = _sizes(selections, float(retentions[middle]))
        if parameters(network, tried) <= allowed:
            sizes.append(tried)
            low = middle + 1
        else:
            high = middle
    if parameters(network, sizes[-1]) > allowed:
        raise ValueError(f"a rate of {rate:.1%} cannot be reached by {', '.join(selections)}: add layers")
    return sizes[-1]


def parameters(network: nn.Module, sizes: Mapping[str, int]) -> int:
    """Count the parameters with so many nodes of the named layers left, in a network whose layers form a chain."""
    total, left = 0, Fraction(1)  # of the inputs of the next layer
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nodes = len(layer.weight)
            kept = sizes.get(name, nodes)
            total += int(kept * layer.weight[0].numel() * left) + kept * (layer.bias is not None)
            left = Fraction(kept, nodes)
        else:  # batch norm
            total += int(sum(one.numel() for one in layer.parameters(recurse=False)) * left)
    return total


def compressed(model: Structure, selections: Selections, sizes: Mapping[str, int]) -> nn.Module:
    """Return the network of `model` with the layers' first nodes of each order."""
    chosen = {name: one.at_size(sizes[name], ridge=RESTORE_RIDGE) for name, one in selections.items()}
    return ds.compress(model.model, chosen, example=model)


def in_turn(
    network: nn.Module, form: ds.Method | str, sizes: Mapping[str, int], target: Batches, source: Batches
) -> nn.Module:
    """Return the network with the layers selected one after the other, each in the network as it is by then."""
    choices = {name: ds.LayerChoice(form, size, restore_ridge=RESTORE_RIDGE) for name, size in sizes.items()}
    every = ds.Folding(holdout=ds.HoldoutRule(0.0))
    rows = ds.RowRule(most_patches=None)
    return ds.compress_sequentially(network, target, choices, source=source, rows=rows, folding=every).network


def specificity(target: ds.Moments, source: ds.Moments, most: int) -> dict[str, dict[str, float | None]]:
    """Table 1: mean activation rate, by domain, of nodes kept for one domain alone, and of nodes kept for neither.

    The mean is over the sizes 1..most at which there are such nodes; None where there are none at any.
    """
    for_target, for_source = (ds.spectral(moments).order.tolist() for moments in (target, source))
    rates: dict[str, dict[str, list[float]]] = {"on source": {}, "on target": {}}
    for size in range(1, most + 1):
        kept_target, kept_source = set(for_target[:size]), set(for_source[:size])
        groups = {"source": kept_source - kept_target, "target": kept_target - kept_source}
        groups["none"] = set(range(target.features)) - kept_target - kept_source
        for row, moments in (("on source", source), ("on target", target)):
            for name, nodes in groups.items():
                values = rates[row].setdefault(name, [])
                values.extend([float(moments.active_rate[sorted(nodes)].mean())] if nodes else [])
    return {
        row: {name: float(np.mean(values)) if values else None for name, values in groups_of.items()}
        for row, groups_of in rates.items()
    }


def _sizes(selections: Selections, retention: float) -> dict[str, int]:
    return {
        name: min(int(np.searchsorted(one.retention, retention)) + 1, one.order.size)
        for name, one in selections.items()
    }


def _sum(first: NodeMoments, *others: NodeMoments) -> NodeMoments:
    total = dict(first)
    for other in others:
        total = {layer: moments + other[layer] for layer, moments in total.items()}
    return total
