"""Sums on their way from one rank to another: of each matrix, or strip of one, the lower triangle alone.

A matrix goes in blocks of rows, each as far as its last diagonal entry, so that nothing is copied whole: for d
features some d^2 / 2 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import FoldState, LaneState
from dalr_stream.numerics.statistics.segments import LayerSums, SegmentSum
from dalr_stream.streaming.ranks.link import Message

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
            for lane in lanes:
                yield from _arrays(lane)


def sums_from(facts: Sequence[dict[str, Any]], arrays: Iterator[NDArray[Any]]) -> Iterator[SegmentSum]:
    """Yield the sums that another rank sent."""
    for one in facts:
        layers: LayerSums = {
            name: tuple(_lane(counts, arrays) for counts in lanes) for name, lanes in one["layers"].items()
        }
        yield SegmentSum(one["first"], one["size"], layers)


def strip_message(lane: LaneState) -> Message:
    """Return what sends the same strip of a lane's matrices; of one that is empty nothing has to be sent."""
    h, stop = lane.training.scatter.shape
    return Message({"strip": _counts(lane), "between": [stop - h, stop]}, _arrays(lane, spared=True))


def strip_from(message: Message) -> LaneState:
    """Return what `strip_message` sends."""
    return _lane(message.facts["strip"], iter(message.arrays), Strip(*message.facts["between"]))


def _counts(lane: LaneState) -> list[list[int] | None]:
    return [None if state is None else [state.count, state.samples] for state in (lane.training, lane.heldout)]


def _arrays(lane: LaneState, *, spared: bool = False) -> Iterator[NDArray[Any]]:
    """Yield the arrays of both states; `spared`: of those that are empty none."""
    there = [state for state in (lane.training, lane.heldout) if state is not None]
    for state in (state for state in there if state.count or not spared):
        yield np.stack([state.mean, state.maximum, state.minimum, state.nonzero])
        h, d = state.scatter.shape
        yield from (state.scatter[first:stop, : d - h + stop] for first, stop in _blocks(h))


def _lane(counts: Sequence[list[int] | None], arrays: Iterator[NDArray[Any]], strip: Strip | None = None) -> LaneState:
    training, heldout = (None if one is None else _state(one, arrays, strip) for one in counts)
    assert training is not None  # noqa: S101  # for the type checker: a lane has it
    return LaneState(training, heldout)


def _state(counts: list[int], arrays: Iterator[NDArray[Any]], strip: Strip | None) -> FoldState:
    count, samples = counts
    if strip is not None and count == 0:
        return FoldState.empty(strip)
    mean, maximum, minimum, nonzero = (vector.copy() for vector in next(arrays))
    d = mean.size
    h = d if strip is None else strip.stop - strip.first
    scatter = np.zeros((h, d))
    for first, stop in _blocks(h):
        scatter[first:stop, : d - h + stop] = next(arrays)
    return FoldState(count, samples, mean, scatter, maximum, minimum, nonzero.astype(np.int64))


def _blocks(h: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _ROWS, h)) for first in range(0, h, _ROWS))
