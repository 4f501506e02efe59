"""Layers that grow from their smallest sizes, by the step that saves most loss for its cost each time.

With no end in the way these are the steps along each curve's lower convex hull. A layer's best step never improves as
sizes grow and what may be spent shrinks, so it is looked up again only when it is first in the queue.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.sized_layer import RESOLUTION, SizedLayer, cost


def grow(layers: Sequence[SizedLayer], left: float, enough: float = -np.inf) -> dict[str, int]:
    """Return sizes that cost at most `left` more than the smallest do, grown until no more than `enough` is lost.

    The last step is no longer than it need be. Cost: a look at one layer for each step, and where its curve of losses
    is not convex, or others that share its nodes have grown, (sizes of one layer).
    """
    sizes = {layer.name: int(layer.sizes[0]) for layer in layers}
    places = [0 for _ in layers]
    losses: list[list[float]] = [layer.losses.tolist() for layer in layers]
    lost = sum(of_layer[0] for of_layer in losses)
    curves = [_Curve(layer, around) for layer, around in zip(layers, _around(layers), strict=True)]
    queue = [(-np.inf, number) for number in range(len(layers))]
    while queue and lost > enough + RESOLUTION:
        _, number = heapq.heappop(queue)
        layer, place = layers[number], places[number]
        step = curves[number].best_step(place, sizes, left)
        if step is None:
            continue
        if not queue or -step.gain_per_cost <= queue[0][0]:
            before = losses[number][place]
            place = places[number] = min(step.place, _smallest(layer, before - (lost - enough)))
            sizes[layer.name] = int(layer.sizes[place])
            lost -= before - losses[number][place]
            left -= step.cost
        heapq.heappush(queue, (-step.gain_per_cost, number))
    return sizes


def _smallest(layer: SizedLayer, loss: float) -> int:
    """Return the place of the smallest size that loses no more; of the whole layer where none does."""
    last = layer.sizes.size - 1
    if loss + RESOLUTION < layer.losses[last]:
        return last
    enough = np.flatnonzero(layer.losses <= loss + RESOLUTION)
    return int(enough[0] if enough.size else last)


@dataclass(frozen=True, slots=True)
class _Step:
    place: int
    """Among the layer's sizes."""
    cost: float
    gain_per_cost: float


def _around(layers: Sequence[SizedLayer]) -> list[list[SizedLayer]]:
    """Return for each layer those on which the cost of its steps depends.

    They are the layer itself, those that read or follow it or belong to the attention that it ends, and those that
    these read, follow or belong to.
    """
    decided_by = {
        layer.name: {*(source.layer for source in layer.reads), *filter(None, (layer.follows, layer.attention))}
        for layer in layers
    }
    touched: dict[str, set[str]] = {layer.name: {layer.name} for layer in layers}
    for name, others in decided_by.items():
        for other in others & touched.keys():
            touched[other].add(name)
    wanted = [touched[one.name].union(*(decided_by[name] for name in touched[one.name])) for one in layers]
    return [[other for other in layers if other.name in names] for names in wanted]


class _Curve:
    """What a layer loses and costs at each size while others stay as they are; worked out anew once they have grown.

    From where losses fall ever more slowly for their cost, the best step is the next size or the layer whole.
    """

    def __init__(self, layer: SizedLayer, around: Sequence[SizedLayer]) -> None:
        """`around`: the layers on which its costs depend, itself among them."""
        self._layer, self._around = layer, around
        narrows = layer.family is not Family.LOW_RANK  # else the costs of others stay as they are
        self._others = [
            other.name for other in around if other is not layer and (narrows or other.family is not Family.LOW_RANK)
        ]
        self._known: list[int] | None = None
        self._costs: list[float] = []
        self._regular_from, self._regular_to = 0, 0  # the places from which one of two steps is known to be the best
        self._rates: list[float] = []
        self._whole_rates: list[float] = []

    def best_step(self, place: int, sizes: Mapping[str, int], left: float) -> _Step | None:
        """Return the step up from `place` that saves most loss for its cost, of those that cost at most `left`."""
        known = [sizes[name] for name in self._others]
        if known != self._known:
            self._known = known
            self._look(sizes)
        if place >= self._regular_to or place < self._regular_from:
            return self._among_all(place, left)
        costs, rate, whole_rate = self._costs, self._rates[place], self._whole_rates[place]
        if whole_rate > rate and costs[-1] - costs[place] <= left:
            return _Step(len(costs) - 1, costs[-1] - costs[place], whole_rate)
        price = costs[place + 1] - costs[place]
        return _Step(place + 1, price, rate) if price <= left else None

    def _look(self, sizes: Mapping[str, int]) -> None:
        """Work out the costs, and the rates of the step to the next size and of the one to the layer whole."""
        layer = self._layer
        here = {other.name: sizes[other.name] for other in self._around}
        costs = np.broadcast_to(cost(self._around, {**here, layer.name: layer.sizes}), layer.sizes.shape)
        gains, prices = -np.diff(layer.losses), np.diff(costs)
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = (gains / prices)[:-1]
            whole = (layer.losses[:-2] - layer.losses[-1]) / (costs[-1] - costs[:-2])
        slower = (gains[:-1] > RESOLUTION) & (np.append(rates[:-1] > rates[1:], values=True) if rates.size else True)
        slower &= (prices[:-1] > 0) & (prices[-1:] >= 0)
        otherwise = np.flatnonzero(~slower)
        self._regular_from, self._regular_to = int(otherwise[-1]) + 1 if otherwise.size else 0, slower.size
        self._costs, self._rates, self._whole_rates = costs.tolist(), rates.tolist(), whole.tolist()

    def _among_all(self, place: int, left: float) -> _Step | None:
        losses, costs = self._layer.losses, np.array(self._costs)
        gains, prices = losses[place] - losses[place + 1 :], costs[place + 1 :] - costs[place]
        useful = np.flatnonzero((gains > RESOLUTION) & (prices <= left))
        if useful.size == 0:
            return None
        rates = np.divide(gains[useful], prices[useful], out=np.full(useful.size, np.inf), where=prices[useful] > 0)
        best = useful[np.argmax(rates)]
        return _Step(int(place + 1 + best), float(prices[best]), float(rates.max()))
