"""Sums of segments on their way from one rank to another: of each matrix the lower triangle alone.

A matrix goes in blocks of rows, each as far as its last diagonal entry, so that nothing is copied whole: for d
features some d^2 / 2 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.statistics.folding import FoldState, LaneState
from dalr_stream.numerics.statistics.segments import LayerSums, SegmentSum

_ROWS = 64
"""Of a block: small beside a matrix, and large enough to be sent at full speed."""


def facts_of(sums: Sequence[SegmentSum]) -> list[dict[str, Any]]:
    """Return what is no array, in plain values."""
    return [
        {
            "first": one.first,
            "size": one.size,
            "layers": {name: [_counts(lane) for lane in lanes] for name, lanes in one.layers.items()},
        }
        for one in sums
    ]


def arrays_of(sums: Sequence[SegmentSum]) -> Iterator[NDArray[Any]]:
    """Yield the arrays, in the order in which `sums_from` takes them."""
    for one in sums:
        for lanes in one.layers.values():
            for state in (state for lane in lanes for state in (lane.training, lane.heldout) if state is not None):
                yield np.stack([state.mean, state.maximum, state.minimum, state.nonzero])
                yield from (state.scatter[first:stop, :stop] for first, stop in _blocks(len(state.scatter)))


def sums_from(facts: Sequence[dict[str, Any]], arrays: Iterator[NDArray[Any]]) -> Iterator[SegmentSum]:
    """Yield the sums that another rank sent."""
    for one in facts:
        layers: LayerSums = {
            name: tuple(LaneState(*(_state(counts, arrays) for counts in lane)) for lane in lanes)
            for name, lanes in one["layers"].items()
        }
        yield SegmentSum(one["first"], one["size"], layers)


def _counts(lane: LaneState) -> list[list[int] | None]:
    return [None if state is None else [state.count, state.samples] for state in (lane.training, lane.heldout)]


def _state(counts: list[int] | None, arrays: Iterator[NDArray[Any]]) -> Any:
    if counts is None:
        return None
    mean, maximum, minimum, nonzero = (vector.copy() for vector in next(arrays))
    d = mean.size
    scatter = np.zeros((d, d))
    for first, stop in _blocks(d):
        scatter[first:stop, :stop] = next(arrays)
    count, samples = counts
    return FoldState(count, samples, mean, scatter, maximum, minimum, nonzero.astype(np.int64))


def _blocks(d: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _ROWS, d)) for first in range(0, d, _ROWS))
