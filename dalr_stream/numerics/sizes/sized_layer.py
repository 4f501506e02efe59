"""One of several layers as a rule for sizes sees it: the sizes it may have, what it loses at each, what each costs.

The loss of a layer is a share: of its outputs' energy tr(Z Z') for a factor pair, of its nodes' energy tr(Sigma) for a
selection (1 - retention). `in_units` turns it into what was measured of the whole network, one unit for all layers and
for both families. The last size of a layer is always the layer as it is, which loses nothing; a factor pair above
break-even never appears, because it costs more than that.

Sizes are counted in weights, or in multiply-adds where a layer's positions a sample are given. A layer whose inputs
are nodes of another one gets narrower when nodes of that one go, and so does one whose nodes go with another's, or with
the heads that another one reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.options import parse_choice, whole_number
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.types import Indices, Vector

RESOLUTION = 1e-12
"""Shares closer than this are one: of energy, whose curves carry a few EPSILON x the trace, and of costs."""


@dataclass(frozen=True, slots=True)
class Source:
    """A layer whose nodes are inputs of another one.

    Attributes
    ----------
    layer
        Its name.
    inputs
        Inputs for each of its nodes: more than one for the kernel of a convolution, or for a flattened image.
    """

    layer: str
    inputs: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class SizedLayer:
    """The sizes that one layer may have, what it loses at each, and how it is counted.

    Attributes
    ----------
    name
        The layer's name.
    shape
        Its shape, and what its nodes weigh in their readers.
    family
        Whether its sizes are ranks, numbers of kept nodes, or dimensions of the heads that it reads.
    sizes
        (s,): ascending; the last is `whole`, the layer as it is.
    losses
        (s,): share of the energy that is lost, or the loss that was measured; non-increasing, the last is 0.
    reads
        The layers whose nodes are inputs of this one.
    positions
        Rows per sample where multiply-adds are counted; 1 where weights are.
    follows
        The layer with whose outputs this one's go, tied by an addition or a product.
    nats
        (s,): what the loss of a sample rises by at each size, from gradients; None where they are not known.
    at_stake
        What it would rise by with nothing of the layer left; None likewise.
    attention
        The output layer of the attention that this layer gives queries, keys or values of: its outputs go with the
        dimensions of that layer's heads.
    """

    name: str
    shape: LayerShape
    family: Family
    sizes: Indices = field(repr=False)
    losses: Vector = field(repr=False)
    reads: tuple[Source, ...] = ()
    positions: float = 1.0
    follows: str | None = None
    nats: Vector | None = field(default=None, repr=False)
    at_stake: float | None = None
    attention: str | None = None

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
        return whole_size(self.shape, self.family)

    def loss(self, size: int) -> float:
        """Return what is lost at one of the sizes."""
        return float(self.losses[np.searchsorted(self.sizes, size)])

    def cost(self, size: int | Indices, inputs: int | Indices, outputs: int | Vector | None = None) -> Vector:
        """Weights times positions at a size, with `inputs` of the inputs left, and `outputs` where others decide."""
        m = np.asarray(self.shape.outputs if outputs is None else outputs, np.float64)
        d, k = np.asarray(inputs, np.float64), np.asarray(size, np.float64)
        smaller = {
            Family.LOW_RANK: k * (m + self.shape.groups * d),
            Family.SELECTION: k * d,
            Family.HEADS: m * d * k / max(self.whole, 1),
        }
        return self.positions * np.where(k == self.whole, m * d, smaller[self.family])

    def at_share(self, share: float) -> int:
        """Return the largest size that costs at most this share of the layer; the smallest where none does."""
        costs = self.cost(self.sizes, self.shape.inputs)
        affordable = np.flatnonzero(costs <= share * costs[-1] * (1 + RESOLUTION))
        return int(self.sizes[affordable[-1] if affordable.size else 0])

    def multiples_of(self, step: int) -> SizedLayer:
        """Return the layer with only multiples of `step` as sizes, and itself as it is."""
        whole_number(step, f"layer '{self.name}': what sizes are multiples of")
        stay = (self.sizes % step == 0) | (self.sizes == self.whole)
        nats = None if self.nats is None else self.nats[stay]
        return replace(self, sizes=self.sizes[stay], losses=self.losses[stay], nats=nats)

    def in_units(self, scale: float) -> SizedLayer:
        """Return the layer with `scale` times the losses: those of the whole network for a share of the layer's."""
        if not 0.0 <= scale < np.inf:
            raise InvalidInputError(f"layer '{self.name}': a scale of losses must be 0 or more, got {scale}")
        return replace(self, losses=scale * self.losses)


def cost(layers: Sequence[SizedLayer], sizes: Mapping[str, int | Indices]) -> Vector:
    """Return what all layers cost together at these sizes.

    Parameters
    ----------
    layers
        From `factor_layer`, `selection_layer` or `unchanged_layer`.
    sizes
        Size by layer; for one of them it may be an array of sizes.

    Returns
    -------
    numpy.ndarray
        Weights times positions: one number, or one for each size of that array.

    See Also
    --------
    within_budget : sizes whose cost stays within a budget.

    Examples
    --------
    Keeping 5 of a layer's 10 nodes halves it, and the layer that reads them:

    >>> import numpy as np, dalr_stream as ds
    >>> selection = ds.prune_by_mean(ds.Moments.of(np.eye(10)))
    >>> shape = ds.numerics.LayerShape(outputs=10, inputs=6, next_outputs=4)
    >>> first = ds.numerics.selection_layer("first", selection, shape)
    >>> last = ds.numerics.unchanged_layer(
    ...     "last", ds.numerics.LayerShape(outputs=4, inputs=10), reads=[ds.numerics.Source("first")]
    ... )
    >>> float(ds.numerics.cost([first, last], {"first": 10, "last": 4}))
    100.0
    >>> float(ds.numerics.cost([first, last], {"first": 5, "last": 4}))
    50.0
    """
    gone = {layer.name: layer.whole - sizes[layer.name] for layer in layers if layer.family is Family.SELECTION}
    heads = {layer.name: sizes[layer.name] / layer.whole for layer in layers if layer.family is Family.HEADS}
    costs = (
        layer.cost(sizes[layer.name], _inputs_left(layer, gone), _outputs_left(layer, gone, heads)) for layer in layers
    )
    return np.asarray(sum(costs, start=np.zeros(())))


def _inputs_left(layer: SizedLayer, gone: Mapping[str, int | Indices]) -> int | Indices:
    """Return how many inputs a layer has left once `gone` nodes of the layers that it reads are removed."""
    removed = (source.inputs * gone[source.layer] for source in layer.reads if source.layer in gone)
    return layer.shape.inputs - sum(removed)


def _outputs_left(
    layer: SizedLayer, gone: Mapping[str, int | Indices], heads: Mapping[str, float | Vector]
) -> Vector | None:
    """Return how many outputs a layer has left where the size of another decides."""
    if layer.attention is not None and layer.attention in heads:
        return np.asarray(layer.shape.outputs * heads[layer.attention])
    return None if layer.follows is None else np.asarray(layer.shape.outputs - gone.get(layer.follows, 0))


def whole_size(shape: LayerShape, family: Family) -> int:
    """Return the size that stands for a layer as it is, in the terms of a family."""
    sizes = {Family.LOW_RANK: shape.max_rank, Family.SELECTION: shape.outputs, Family.HEADS: shape.head_size}
    return sizes[family]


def as_they_are(layers: Sequence[SizedLayer]) -> dict[str, int]:
    """Return the sizes that leave every layer as it is.

    Parameters
    ----------
    layers
        From `factor_layer`, `selection_layer` or `unchanged_layer`.

    Returns
    -------
    dict
        Size by layer.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.numerics.as_they_are([ds.numerics.unchanged_layer("fc", ds.numerics.LayerShape(outputs=10, inputs=6))])
    {'fc': 6}
    """
    return {layer.name: layer.whole for layer in layers}
