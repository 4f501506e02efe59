"""Sums of segments of the batches, in one fixed tree, whoever folded which segment.

    segments 0 1 2 3 4     (0 + 1) + (2 + 3)) + 4

Segment s is the batches s N to (s + 1) N. A sum of 2^k of them has its place in the tree where its first is a multiple
of 2^k, so the sums of any run of segments can be made apart and put together later: a rank adds up its own, and the
bits are those of one process that added up all. Of S segments at most log2(S) + 1 sums are alive, as in `merge_all`,
which adds in the same order.

A layer of which a segment has no rows is missing from its sum, and adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dalr_stream.numerics.statistics.folding import LaneState

LayerSums = dict[str, tuple[LaneState, ...]]
"""Layer -> what was folded of each of `rule.partitions`."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentSum:
    """The sum of segments `first` to `first + size`."""

    first: int
    size: int
    layers: LayerSums

    @property
    def stop(self) -> int:
        """The segment after its last."""
        return self.first + self.size

    def joins(self, other: SegmentSum) -> bool:
        """Tell whether this one and the next are two halves of a sum that has a place in the tree."""
        return self.size == other.size and self.stop == other.first and self.first % (2 * self.size) == 0

    def __add__(self, other: SegmentSum) -> SegmentSum:
        """Join two neighbours; each layer's two sums are given up as soon as they are joined."""
        left, right = self.layers, other.layers
        joined = {name: _joined(left.pop(name, ()), right.pop(name, ())) for name in dict.fromkeys([*left, *right])}
        return SegmentSum(self.first, self.size + other.size, joined)


class SegmentTree:
    """The sums of neighbouring segments, joined as far as the tree allows."""

    def __init__(self, sums: Iterable[SegmentSum] = ()) -> None:
        """Begin with `sums`, as another tree gave them."""
        self._sums: list[SegmentSum] = []
        for one in sums:
            self.push(one)

    def __iter__(self) -> Iterator[SegmentSum]:
        return iter(self._sums)

    def push(self, one: SegmentSum) -> None:
        """Take the sum that follows; what it is made of is the tree's from then on."""
        while self._sums and self._sums[-1].joins(one):
            one = self._sums.pop() + one
        self._sums.append(one)

    def take(self) -> list[SegmentSum]:
        """Return all sums, and hold none."""
        sums, self._sums = self._sums, []
        return sums

    def total(self, layer: str) -> tuple[LaneState, ...]:
        """Return one layer's sum over all segments, and hold it no longer."""
        total: tuple[LaneState, ...] = ()
        for one in reversed(self._sums):
            total = _joined(one.layers.pop(layer, ()), total)
        return total


def _joined(left: tuple[LaneState, ...], right: tuple[LaneState, ...]) -> tuple[LaneState, ...]:
    if not left or not right:
        return left or right
    return tuple(one + other for one, other in zip(left, right, strict=True))
