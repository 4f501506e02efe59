"""A size for each of several layers, from what each of them loses at each of its sizes: no network and no data.

Losses of all layers are added up, and their sum is what a budget keeps small.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.sized_layer import RESOLUTION, SizedLayer, cost

BISECTIONS = 50
"""Halvings of a share: closer than any two sizes that it decides between."""


def uniform(layers: Sequence[SizedLayer], ratio: float) -> dict[str, int]:
    """Return in every layer the largest size of at most `ratio` of the full rank or of all nodes, 0 < ratio <= 1.

    The smallest size where none is so small. Ratios above a layer's break-even leave it as it is.
    """
    _require_share(ratio, "ratio")
    return {layer.name: _at_ratio(layer, ratio) for layer in layers}


def by_energy(layers: Sequence[SizedLayer], share: float) -> dict[str, int]:
    """Return in every layer the smallest size that keeps `share` of the energy, 0 < share <= 1."""
    _require_share(share, "energy")
    return {layer.name: int(layer.sizes[np.argmax(layer.losses <= 1.0 - share + RESOLUTION)]) for layer in layers}


def common_share(layers: Sequence[SizedLayer], budget: float) -> dict[str, int]:
    """Return the same share of its own weights in every layer, the largest that costs at most `budget` together.

    Of a selection that is a share of the nodes, of a factor pair one of the break-even rank.
    """
    return _largest_within(layers, budget, lambda share: {layer.name: layer.at_share(share) for layer in layers})


def common_energy(layers: Sequence[SizedLayer], budget: float) -> dict[str, int]:
    """Return the same share of its own energy in every layer, the largest that costs at most `budget` together."""
    return _largest_within(layers, budget, lambda share: by_energy(layers, max(share, RESOLUTION)))


def within_budget(layers: Sequence[SizedLayer], budget: float) -> dict[str, int]:
    """Return sizes that cost at most `budget` together and keep the sum of losses small.

    Greedy from the smallest sizes: the step to a larger size that saves most loss for its cost, among those that the
    budget still allows, until it allows none. With no budget in the way these are the steps along each curve's lower
    convex hull. Where no layer reads another's nodes the sum of losses is above the smallest possible by less than the
    first step that had to be passed over.

    A layer's best step never improves as sizes grow and the budget shrinks, so it is looked up again only when it is
    first in the queue. Cost: (steps taken) x (sizes of one layer).

    Raises InvalidInputError where the smallest sizes cost more than `budget`.
    """
    sizes = {layer.name: int(layer.sizes[0]) for layer in layers}
    least = _require_affordable(layers, sizes, budget)
    around = [_around(layers, layer) for layer in layers]
    queue = [(-np.inf, number) for number in range(len(layers))]
    left = budget - least
    while queue:
        _, number = heapq.heappop(queue)
        step = _best_step(around[number], sizes, layers[number], left)
        if step is None:
            continue
        if not queue or -step.gain_per_cost <= queue[0][0]:
            sizes[layers[number].name] = step.size
            left -= step.cost
        heapq.heappush(queue, (-step.gain_per_cost, number))
    return sizes


@dataclass(frozen=True, slots=True)
class _Step:
    size: int
    cost: float
    gain_per_cost: float


def _around(layers: Sequence[SizedLayer], layer: SizedLayer) -> list[SizedLayer]:
    """Return the layers on which the cost of a step of `layer` depends.

    They are the layer itself, those that read or follow it, and those that these read or follow.
    """
    decided_by = {
        other.name: {*(source.layer for source in other.reads), *([other.follows] if other.follows else [])}
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


def _require_affordable(layers: Sequence[SizedLayer], smallest: Mapping[str, int], budget: float) -> float:
    """Return what the smallest sizes cost."""
    least = float(cost(layers, smallest))
    if least > budget:
        sizes = ", ".join(f"{name} {size}" for name, size in smallest.items())
        raise InvalidInputError(
            f"budget: the smallest sizes ({sizes}) cost {least:,.0f} and the budget is {budget:,.0f}: raise it, or "
            "leave layers out"
        )
    return least


def _largest_within(
    layers: Sequence[SizedLayer], budget: float, at_share: Callable[[float], dict[str, int]]
) -> dict[str, int]:
    """Return the sizes at the largest share in 0..1 whose cost `budget` allows; costs grow with the share."""
    low, high, best = 0.0, 1.0, at_share(0.0)
    _require_affordable(layers, best, budget)
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        sizes = at_share(share)
        if float(cost(layers, sizes)) <= budget:
            low, best = share, sizes
        else:
            high = share
    return best


def _at_ratio(layer: SizedLayer, ratio: float) -> int:
    wanted = int(ratio * layer.whole + RESOLUTION)  # 0.29 x 100 is a little less than 29
    if layer.family is Family.LOW_RANK and wanted > layer.shape.break_even_rank:
        return layer.whole
    return int(layer.sizes[max(int(np.searchsorted(layer.sizes, wanted, side="right")) - 1, 0)])


def _require_share(value: float, name: str) -> None:
    if not 0.0 < value <= 1.0:
        raise InvalidInputError(f"{name} must lie in (0, 1], got {value}")
