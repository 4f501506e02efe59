"""The two baselines that rank nodes one by one, by what each gives: nothing is restored for those that go."""

from __future__ import annotations

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Diagnostics, Route
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.node_moments import nodes_of, require_rows
from dalr_stream.numerics.selection.nodes import ChannelSelection, retention_of
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Vector


def prune_by_mean(moments: Moments | Layer) -> ChannelSelection:
    """Rank nodes by mean activation, largest first; pruned nodes are restored as zero (DALR, section 5.3).

    Parameters
    ----------
    moments
        Of the nodes, as their readers read them; or a `Layer`, which brings them.

    Returns
    -------
    ChannelSelection
        Nested subsets of the nodes, with their share of the energy at every size.

    Raises
    ------
    InvalidInputError
        For moments of no rows.

    See Also
    --------
    spectral : restores what is pruned from what is kept.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.prune_by_mean(ds.Moments.of([[1.0, 3.0, 2.0], [1.0, 3.0, 9.0]])).order.tolist()
    [2, 1, 0]
    """
    nodes = nodes_of(moments)
    return _ranking(nodes, Method.PRUNE_MEAN, nodes.mean)


def prune_by_max(moments: Moments | Layer) -> ChannelSelection:
    """Rank nodes by their largest activation; pruned nodes are restored as zero (DALR, section 5.3).

    Parameters
    ----------
    moments
        Of the nodes, as their readers read them; or a `Layer`, which brings them.

    Returns
    -------
    ChannelSelection
        Nested subsets of the nodes, with their share of the energy at every size.

    Raises
    ------
    InvalidInputError
        For moments of no rows, and where the maxima are unknown, as they are after a subtraction of moments.

    See Also
    --------
    spectral : restores what is pruned from what is kept.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.prune_by_max(ds.Moments.of([[1.0, 3.0, 2.0], [1.0, 3.0, 2.5]])).order.tolist()
    [1, 2, 0]
    """
    nodes = nodes_of(moments)
    if np.isnan(nodes.maximum).any():
        raise InvalidInputError(
            "pruning by maximum needs the largest activations, which a subtraction of moments forgets: "
            "add up the records that stay instead"
        )
    return _ranking(nodes, Method.PRUNE_MAX, nodes.maximum)


def _ranking(moments: Moments, method: Method, score: Vector) -> ChannelSelection:
    """Order by `score`, descending; retention is the share of tr(Sigma) on the nodes kept, nothing being restored."""
    require_rows(moments)
    d = moments.features
    order = np.argsort(-score, kind="stable").astype(np.int64)
    energy = moments.variance + moments.mean**2
    return ChannelSelection(
        method=method,
        order=order,
        factor=None,
        retention=retention_of(energy[order], left=0.0, size=d),
        center=np.zeros(d),
        not_live=np.zeros(0, np.int64),
        diagnostics=Diagnostics(moments.count, moments.samples, d, None, 0.0, Route.RANKING.value),
    )
