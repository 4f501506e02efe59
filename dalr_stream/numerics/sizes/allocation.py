"""A size for each of several layers, from what each of them loses at each of its sizes: no network and no data.

The loss of a layer is a share: of its outputs' energy tr(Z Z') for a factor pair, of its nodes' energy tr(Sigma) for a
selection (1 - retention). Shares of layers of any scale may be added up, and their sum is what a budget keeps small.
The last size of a layer is always the layer as it is, which loses nothing; a factor pair above break-even never
appears, because it costs more than that.

Sizes are counted in weights, or in multiply-adds where a layer's positions a sample are given. A layer whose inputs
are nodes of another one gets narrower when nodes of that one go, and is counted so.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.losses import lost_energy
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.types import Indices, Vector

RESOLUTION = 1e-12
"""Shares of energy closer than this are one: curves carry a few EPSILON x the trace, times the width of a sum."""


@dataclass(frozen=True, slots=True)
class Source:
    """A layer whose nodes are inputs of another one."""

    layer: str
    inputs: int = 1
    """Inputs for each of its nodes: more than one for the kernel of a convolution, or for a flattened image."""


@dataclass(frozen=True, slots=True, eq=False)
class SizedLayer:
    """The sizes that one layer may have, what it loses at each, and how it is counted."""

    name: str
    shape: LayerShape
    family: Family
    sizes: Indices = field(repr=False)
    """(s,) ascending ranks, or numbers of kept nodes; the last is `whole`, the layer as it is."""
    losses: Vector = field(repr=False)
    """(s,): share of the energy that is lost, in 0..1, non-increasing; the last is 0."""
    reads: Source | None = None
    """The layer whose nodes are inputs of this one."""
    positions: float = 1.0
    """Rows a sample where multiply-adds are counted; 1 where weights are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", parse_choice(Family, self.family, "family"))
        ascending = self.sizes.size > 0 and self.sizes[0] >= 1 and bool((np.diff(self.sizes) > 0).all())
        if not ascending or self.sizes[-1] != self.whole or self.losses.shape != self.sizes.shape:
            raise InvalidInputError(
                f"layer '{self.name}': sizes must ascend from at least 1 to {self.whole}, one loss each, "
                f"got {self.sizes.tolist()[:5]} and {self.losses.size} losses"
            )

    @property
    def whole(self) -> int:
        """The size that stands for the layer as it is."""
        return self.shape.max_rank if self.family is Family.LOW_RANK else self.shape.outputs

    def loss(self, size: int) -> float:
        """Return the share lost at one of the sizes."""
        return float(self.losses[np.searchsorted(self.sizes, size)])

    def cost(self, size: int | Indices, inputs: int | Indices) -> Vector:
        """Weights times positions at a size, with `inputs` of the inputs left."""
        m, d, k = self.shape.outputs, np.asarray(inputs, np.float64), np.asarray(size, np.float64)
        smaller = k * (m + self.shape.groups * d) if self.family is Family.LOW_RANK else k * d
        return self.positions * np.where(k == self.whole, m * d, smaller)

    def multiples_of(self, step: int) -> SizedLayer:
        """Return the layer with only multiples of `step` as sizes, and itself as it is."""
        if step < 1:
            raise InvalidInputError(f"layer '{self.name}': sizes are rounded to multiples of at least 1, got {step}")
        stay = (self.sizes % step == 0) | (self.sizes == self.whole)
        return replace(self, sizes=self.sizes[stay], losses=self.losses[stay])


def factor_layer(
    name: str, factors: Factors, moments: InputMoments, *, reads: Source | None = None, positions: float = 1.0
) -> SizedLayer:
    """Return a layer at the ranks that cost less than it does; `moments` are of its inputs."""
    shape = LayerShape(factors.outputs, factors.inputs, groups=len(factors.parts))
    ranks = np.arange(1, min(shape.break_even_rank, shape.max_rank - 1) + 1)
    return _sized(name, shape, Family.LOW_RANK, ranks, lost_energy(factors, moments)[ranks], reads, positions)


def selection_layer(
    name: str, selection: ChannelSelection, shape: LayerShape, *, reads: Source | None = None, positions: float = 1.0
) -> SizedLayer:
    """Return a layer of `shape` at every number of nodes that its selection can keep."""
    sizes = np.arange(1, min(selection.order.size, shape.outputs - 1) + 1)
    return _sized(name, shape, Family.SELECTION, sizes, 1.0 - selection.retention[sizes - 1], reads, positions)


def cost(layers: Sequence[SizedLayer], sizes: Mapping[str, int | Indices]) -> Vector:
    """Return what all layers cost together at these sizes; an array of sizes for one of them gives as many costs."""
    gone = {layer.name: layer.whole - sizes[layer.name] for layer in layers if layer.family is Family.SELECTION}
    costs = (layer.cost(sizes[layer.name], _inputs_left(layer, gone)) for layer in layers)
    return np.asarray(sum(costs, start=np.zeros(())))


def _inputs_left(layer: SizedLayer, gone: Mapping[str, int | Indices]) -> int | Indices:
    """Return how many inputs a layer has left once `gone` nodes of the layer that it reads are removed."""
    if layer.reads is None or layer.reads.layer not in gone:
        return layer.shape.inputs
    return layer.shape.inputs - layer.reads.inputs * gone[layer.reads.layer]


def as_they_are(layers: Sequence[SizedLayer]) -> dict[str, int]:
    """Return the sizes that leave every layer as it is."""
    return {layer.name: layer.whole for layer in layers}


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
    least = float(cost(layers, sizes))
    if least > budget:
        smallest = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InvalidInputError(
            f"budget: the smallest sizes ({smallest}) cost {least:,.0f} and the budget is {budget:,.0f}: raise it, or "
            "leave layers out"
        )
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
    """Return the layers on which the cost of a step of `layer` depends: itself, what it reads and what reads it."""
    sources = {other.name: other.reads.layer for other in layers if other.reads is not None}
    return [
        other
        for other in layers
        if layer.name in (other.name, sources.get(other.name)) or other.name == sources.get(layer.name)
    ]


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


def _sized(
    name: str,
    shape: LayerShape,
    family: Family,
    sizes: Indices,
    losses: Vector,
    reads: Source | None,
    positions: float,
) -> SizedLayer:
    """Add the layer as it is; rounding must not make a larger size look worse than a smaller one."""
    whole = shape.max_rank if family is Family.LOW_RANK else shape.outputs
    falling = np.minimum.accumulate(np.clip(losses, 0.0, 1.0))
    return SizedLayer(name, shape, family, np.append(sizes, whole), np.append(falling, 0.0), reads, positions)


def _at_ratio(layer: SizedLayer, ratio: float) -> int:
    wanted = int(ratio * layer.whole + RESOLUTION)  # 0.29 x 100 is a little less than 29
    if layer.family is Family.LOW_RANK and wanted > layer.shape.break_even_rank:
        return layer.whole
    return int(layer.sizes[max(int(np.searchsorted(layer.sizes, wanted, side="right")) - 1, 0)])


def _require_share(value: float, name: str) -> None:
    if not 0.0 < value <= 1.0:
        raise InvalidInputError(f"{name} must lie in (0, 1], got {value}")
