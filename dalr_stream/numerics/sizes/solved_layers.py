"""Layers with the sizes that their solutions have, and what each size loses by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.losses import lost_energy, lost_nats
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, Source, whole_size
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.types import Indices, Vector


def factor_layer(
    name: str,
    factors: Factors,
    moments: InputMoments,
    *,
    gradients: InputMoments | None = None,
    reads: Sequence[Source] = (),
    positions: float = 1.0,
) -> SizedLayer:
    """Return a layer at the ranks that cost less than it does.

    Parameters
    ----------
    name
        The layer's name.
    factors
        From `dalr`, `truncated_svd` or `solve`.
    moments
        Of its inputs: they decide what each rank loses.
    gradients
        Moments of the gradients by its outputs: what the loss feels of each rank, `SizedLayer.nats`.
    reads
        The layers whose nodes are inputs of this one.
    positions
        Rows per sample where multiply-adds are to be counted; 1 for weights.

    Returns
    -------
    SizedLayer
        Its sizes are ranks, and the whole layer.

    See Also
    --------
    within_budget : chooses the sizes of several layers.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> moments = ds.Moments.of(np.eye(6))
    >>> factors = ds.truncated_svd(np.diag([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]), None)
    >>> ds.numerics.factor_layer("fc", factors, moments).sizes.tolist()
    [1, 2, 3, 6]
    """
    shape = LayerShape(factors.outputs, factors.inputs, groups=len(factors.parts))
    ranks = np.arange(1, min(shape.break_even_rank, shape.max_rank - 1) + 1)
    layer = _sized(name, shape, Family.LOW_RANK, ranks, lost_energy(factors, moments)[ranks], reads, positions)
    return layer if gradients is None else _felt(layer, lost_nats(factors, moments, gradients))


def selection_layer(
    name: str,
    selection: ChannelSelection,
    shape: LayerShape,
    *,
    nats: Vector | None = None,
    reads: Sequence[Source] = (),
    positions: float = 1.0,
) -> SizedLayer:
    """Return a layer at every number of nodes that its selection can keep.

    Parameters
    ----------
    name
        The layer's name.
    selection
        From `spectral`, `momasp` or `solve`.
    shape
        Of the layer, with what each node weighs in its readers: `Store.shape(name)`.
    nats
        (m + 1,): what the loss feels where 0..m nodes are kept, `SizedLayer.nats`.
    reads
        The layers whose nodes are inputs of this one.
    positions
        Rows per sample where multiply-adds are to be counted; 1 for weights.

    Returns
    -------
    SizedLayer
        Its sizes are numbers of kept nodes.

    See Also
    --------
    within_budget : chooses the sizes of several layers.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> selection = ds.prune_by_mean(ds.Moments.of(np.eye(4)))
    >>> layer = ds.numerics.selection_layer("fc", selection, ds.numerics.LayerShape(outputs=4, inputs=6))
    >>> layer.sizes.tolist(), layer.losses.round(6).tolist()
    ([1, 2, 3, 4], [0.75, 0.5, 0.25, 0.0])
    """
    sizes = np.arange(1, min(selection.order.size, shape.outputs - 1) + 1)
    layer = _sized(name, shape, Family.SELECTION, sizes, 1.0 - selection.retention[sizes - 1], reads, positions)
    return layer if nats is None else _felt(layer, nats)


def unchanged_layer(
    name: str, shape: LayerShape, *, reads: Sequence[Source] = (), positions: float = 1.0, follows: str | None = None
) -> SizedLayer:
    """Return a layer that has no size but its own; it gets narrower with the layers that it reads or follows.

    Parameters
    ----------
    name
        The layer's name.
    shape
        Of the layer.
    reads
        The layers whose nodes are inputs of this one.
    positions
        Rows per sample where multiply-adds are to be counted; 1 for weights.
    follows
        The layer with whose outputs this one's go, tied by an addition or a product.

    Returns
    -------
    SizedLayer
        Its only size is the whole layer.

    See Also
    --------
    within_budget : chooses the sizes of several layers.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.numerics.unchanged_layer("fc", ds.numerics.LayerShape(outputs=10, inputs=6)).sizes.tolist()
    [6]
    """
    whole = np.array([shape.max_rank])
    return SizedLayer(name, shape, Family.LOW_RANK, whole, np.zeros(1), tuple(reads), positions, follows)


def _felt(layer: SizedLayer, nats: Vector) -> SizedLayer:
    """Add what the loss feels at sizes 0, 1, ...; of the layer as it is that is nothing."""
    falling = np.minimum.accumulate(np.maximum(nats, 0.0))
    return replace(layer, nats=np.append(falling[layer.sizes[:-1]], 0.0), at_stake=float(falling[0]))


def _sized(
    name: str,
    shape: LayerShape,
    family: Family,
    sizes: Indices,
    losses: Vector,
    reads: Sequence[Source],
    positions: float,
) -> SizedLayer:
    """Add the layer as it is; rounding must not make a larger size look worse than a smaller one."""
    whole = whole_size(shape, family)
    falling = np.minimum.accumulate(np.clip(losses, 0.0, 1.0))
    return SizedLayer(name, shape, family, np.append(sizes, whole), np.append(falling, 0.0), tuple(reads), positions)
