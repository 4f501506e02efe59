"""Layers that grow from their smallest sizes, by the step that saves most loss for its cost each time.

With no end in the way these are the steps along each curve's lower convex hull. A layer's best step never improves as
sizes grow and what may be spent shrinks, so it is looked up again only when it is first in the queue.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.sizes.sized_layer import RESOLUTION, SizedLayer, cost


def grow(layers: Sequence[SizedLayer], left: float, enough: float = -np.inf) -> dict[str, int]:
    """Return sizes that cost at most `left` more than the smallest do, grown until no more than `enough` is lost.

    The last step is no longer than it need be. Cost: (steps taken) x (sizes of one layer).
    """
    sizes = {layer.name: int(layer.sizes[0]) for layer in layers}
    lost = sum(float(layer.losses[0]) for layer in layers)
    around = [_around(layers, layer) for layer in layers]
    queue = [(-np.inf, number) for number in range(len(layers))]
    while queue and lost > enough + RESOLUTION:
        _, number = heapq.heappop(queue)
        layer = layers[number]
        step = _best_step(around[number], sizes, layer, left)
        if step is None:
            continue
        if not queue or -step.gain_per_cost <= queue[0][0]:
            before = layer.loss(sizes[layer.name])
            size = sizes[layer.name] = min(step.size, _smallest(layer, before - (lost - enough)))
            lost -= before - layer.loss(size)
            left -= step.cost
        heapq.heappush(queue, (-step.gain_per_cost, number))
    return sizes


def _smallest(layer: SizedLayer, loss: float) -> int:
    """Return the smallest size that loses no more; the whole layer where none does."""
    enough = np.flatnonzero(layer.losses <= loss + RESOLUTION)
    return int(layer.sizes[enough[0] if enough.size else -1])


@dataclass(frozen=True, slots=True)
class _Step:
    size: int
    cost: float
    gain_per_cost: float


def _around(layers: Sequence[SizedLayer], layer: SizedLayer) -> list[SizedLayer]:
    """Return the layers on which the cost of a step of `layer` depends.

    They are the layer itself, those that read or follow it or belong to the attention that it ends, and those that
    these read, follow or belong to.
    """
    decided_by = {
        other.name: {*(source.layer for source in other.reads), *filter(None, (other.follows, other.attention))}
        for other in layers
    }
    touched = [other.name for other in layers if other.name == layer.name or layer.name in decided_by[other.name]]
    wanted = set(touched).union(*(decided_by[name] for name in touched))
    return [other for other in layers if other.name in wanted]


def _best_step(around: Sequence[SizedLayer], sizes: Mapping[str, int], layer: SizedLayer, left: float) -> _Step | None:
    """Return the step up of one layer that saves most loss for its cost, of those that cost at most `left`."""
    here = {other.name: sizes[other.name] for other in around}
    place = int(np.searchsorted(layer.sizes, here[layer.name]))
    candidates, gains = layer.sizes[place + 1 :], layer.losses[place] - layer.losses[place + 1 :]
    costs = cost(around, {**here, layer.name: candidates}) - cost(around, here)
    useful = np.flatnonzero((gains > RESOLUTION) & (costs <= left))
    if useful.size == 0:
        return None
    rates = np.divide(gains[useful], costs[useful], out=np.full(useful.size, np.inf), where=costs[useful] > 0)
    best = useful[np.argmax(rates)]
    return _Step(int(candidates[best]), float(costs[best]), float(rates.max()))
