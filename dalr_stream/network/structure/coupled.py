"""Who is coupled with a layer's channels, read off Torch-Pruning's dependency graph.

The graph says which operation hands the channels on to which, and how their numbers change on the way. The library's
own walk over it never ends where numbers change each time round a circle, as they do with the rotated and repeated keys
of Llama; this one ends there, and says so. It is otherwise the same walk, in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch_pruning as tp
from numpy.typing import NDArray
from torch import nn
from torch_pruning._helpers import _HybridIndex  # its own mappings make and take these
from torch_pruning.dependency.index_mapping import update_index_mapping

Arrival = tuple[Any, Any, tuple[Any, ...]]
"""A node of the graph, what is done to it, and the numbers that the channels have there."""
MOST_ARRIVALS = 64
"""Other sets of channels that may arrive at one place: as many branches of a network can be concatenated to one."""


@dataclass(slots=True)
class Coupled:
    """A module, or an operation, at which channels arrive."""

    module: Any
    gives: bool
    """Whether it gives the channels; else it reads them."""
    channel_of: dict[int, int] = field(default_factory=dict)
    """By its own features, in the order in which they were found."""

    @property
    def places(self) -> NDArray[np.int64]:
        """(2, n): features and their channels, by channel, then by feature."""
        both = np.array([list(self.channel_of), list(self.channel_of.values())], np.int64)
        return both[:, np.lexsort(both)]


class NotFollowedError(Exception):
    """Where the channels go is not known; the message is the reason."""


def coupled_with(graph: tp.DependencyGraph, root: nn.Module, channels: int) -> list[Coupled]:
    """Return what gives, carries and reads the channels of `root`, itself first; raises NotFollowedError.

    Cost: the operations that the channels go through times their number.
    """
    update_index_mapping(graph)
    members: dict[tuple[Any, ...], Coupled] = {}
    arrivals: Counter[tuple[Any, ...]] = Counter()
    for node, handler, indices in _walk(graph, root, channels):
        place = (node, handler)
        arrivals[place] += 1
        if arrivals[place] > MOST_ARRIVALS:
            raise NotFollowedError(
                "they go round in circles of operations that split, turn or repeat them, as in attention"
            )
        member = members.setdefault(place, Coupled(node.module, graph.is_out_channel_pruning_fn(handler)))
        for index in indices:
            if index.root_idx is None:
                raise NotFollowedError("they are repeated, as keys and values are for the queries that share them")
            member.channel_of.setdefault(index.idx, index.root_idx)
    return list(members.values())


def _walk(graph: tp.DependencyGraph, root: nn.Module, channels: int) -> Iterator[Arrival]:
    """Yield every place and way in which the channels arrive, each once."""
    indices = tuple(_HybridIndex(idx=number, root_idx=number) for number in range(channels))
    first: Arrival = (graph.module2node[root], graph.get_pruner_of_module(root).prune_out_channels, indices)
    seen, waiting = {first}, [first]
    yield first
    while waiting:
        for arrival in _handed_on(*waiting.pop()):
            if arrival not in seen:
                seen.add(arrival)
                waiting.append(arrival)
                yield arrival


def _handed_on(node: Any, handler: Any, indices: tuple[Any, ...]) -> Iterator[Arrival]:
    for dependency in node.dependencies:
        if dependency.is_triggered_by(handler):
            mapped = indices
            for mapping in dependency.index_mapping:
                mapped = mapped if mapping is None else tuple(mapping(mapped))
            if mapped:
                yield dependency.target, dependency.handler, mapped
