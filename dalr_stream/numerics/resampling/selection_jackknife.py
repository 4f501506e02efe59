"""How much a selection depends on the samples it was solved from: nodes are selected again without each shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.resampling.jackknife import leave_one_out, nonempty_shards, require_two, standard_error
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Counts, Vector


@dataclass(frozen=True, slots=True, eq=False)
class SelectionJackknife:
    """How far one selection holds when a shard is left out; every curve has one value per size, k = 1..s."""

    counts: Counts
    common: Vector = field(repr=False)
    """Share of the first k nodes that are among the first k without any one of the shards, whichever."""
    jaccard: Vector = field(repr=False)
    """Nodes in both over nodes in either, of the first k with all shards and without one: the mean over shards."""
    retention: Vector = field(repr=False)
    retention_error: Vector = field(repr=False)


def jackknife_selection(shards: Sequence[Moments], solve: Callable[[Moments], ChannelSelection]) -> SelectionJackknife:
    """Select from all shards and without each of them, and measure how much the selection moves.

    Parameters
    ----------
    shards
        g >= 2 records of the nodes' training rows; empty ones are ignored.
    solve
        Moments to a selection: `ds.spectral`, or `lambda target: ds.momasp(target, source)`.

    Returns
    -------
    SelectionJackknife
        How far the selections agree at every size, and the standard error of the retention.

    Raises
    ------
    InvalidInputError
        For fewer than two shards with rows.

    See Also
    --------
    jackknife_low_rank : the same for factors.

    Notes
    -----
    Cost: g + 1 selections.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> shards = [ds.Moments.of(rng.normal(size=(50, 3)) * [3.0, 2.0, 1.0]) for _ in range(4)]
    >>> ds.numerics.jackknife_selection(shards, ds.spectral).counts.tolist()
    [50, 50, 50, 50]
    """
    nonempty, counts = nonempty_shards(shards)
    require_two(len(nonempty))
    whole = solve(merge_all(iter(nonempty)))
    without = [solve(rest) for rest in leave_one_out(nonempty)]
    size, place = whole.order.size, _places(whole)
    later = [np.maximum(place, _places(other)) for other in without]
    sizes = np.arange(1, size + 1)
    in_both = np.array([_within(places, size) for places in later])
    retention = np.array([other.retention for other in without])
    return SelectionJackknife(
        counts,
        _within(np.max(later, axis=0), size) / sizes,
        (in_both / (2 * sizes - in_both)).mean(axis=0),
        whole.retention,
        standard_error(whole.retention, retention, counts),
    )


def _places(selection: ChannelSelection) -> NDArray[np.int64]:
    """(d,): when each node was taken, from 0; d for those that were not."""
    places = np.full(selection.nodes, selection.nodes, np.int64)
    places[selection.order] = np.arange(selection.order.size)
    return places


def _within(places: NDArray[np.int64], size: int) -> Vector:
    """(s,): nodes whose place is among the first k, k = 1..s."""
    taken = np.bincount(places, minlength=size + 1)[:size]
    return np.asarray(np.cumsum(taken), dtype=np.float64)
