"""The output layer of an attention with the sizes that its heads may have, and what each of them loses.

The loss of a size is the share of the energy of the scores or of the outputs that is lost, of which more is: both are
needed. Where gradients of keys and output layer are known it is also counted in nats, of both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.heads.narrowed import head_nats
from dalr_stream.numerics.heads.problem import HeadProblem
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer
from dalr_stream.numerics.types import Indices, Vector

MOST_SIZES = 32
"""Sizes of heads that are weighed: each takes a restoration from all heads, of cost (H p)^2 H r."""


def head_layer(
    name: str, factors: HeadFactors, layers: Mapping[str, Layer], shape: LayerShape, *, positions: float = 1.0
) -> SizedLayer:
    """Return the output layer of an attention at the sizes that its heads may have.

    Parameters
    ----------
    name
        The output layer's name.
    factors
        From `head_factors`.
    layers
        By name, those of its layout, with the moments that decide what each size loses, and gradients where known.
    shape
        Of the output layer, with the size of its heads.
    positions
        Rows per sample where multiply-adds are to be counted; 1 for weights.

    Returns
    -------
    SizedLayer
        Its sizes are dimensions of each head, 32 of them at most, and the whole layer.

    See Also
    --------
    within_budget : chooses the sizes of several layers.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> seen = ds.Moments.of(rng.normal(size=(200, 8)))
    >>> layers = {name: ds.Layer(name, rng.normal(size=(8, 8)), None, inputs=seen) for name in "qkvo"}
    >>> factors = ds.numerics.head_factors(layers, ds.numerics.HeadLayout(*"qkvo", heads=2, groups=2, size=4))
    >>> shape = ds.numerics.LayerShape(outputs=8, inputs=8, head_size=4)
    >>> ds.numerics.head_layer("o", factors, layers, shape).sizes.tolist()
    [1, 2, 3, 4]
    """
    sizes = _sizes(factors.layout.sizes)
    records = [factors.at_size(int(size)) for size in sizes[:-1]]
    losses = _falling([record.loss for record in records])
    layer = SizedLayer(name, shape, Family.HEADS, sizes, np.minimum(losses, 1.0), positions=positions)
    if not HeadProblem(layers, factors.layout).knows_gradients:
        return layer
    felt = [head_nats(record, layers) for record in records] or [head_nats(factors.at_size(int(sizes[0])), layers)]
    nats = _falling([lost for lost, _ in felt[: len(records)]])
    return replace(layer, nats=nats, at_stake=felt[0][1])


def _sizes(every: Indices) -> Indices:
    """Return the sizes that are weighed, evenly spaced, and the whole."""
    places = np.linspace(0, len(every) - 1, min(len(every), MOST_SIZES + 1)).round().astype(np.int64)
    return every[np.unique(places)]


def _falling(losses: list[float]) -> Vector:
    """Add heads as they are, which lose nothing; rounding must not make a larger size look worse than a smaller one."""
    return np.append(np.minimum.accumulate(np.maximum(losses, 0.0)), 0.0)
