"""Which strips of which matrices each of several ranks folds, where they share the sums of a layer.

A matrix is cut at multiples of `BLOCK_COLUMNS`, so a strip has the bits of those rows of the whole. Strips further down
are longer, so each rank has a few, of which the largest are given out first, each to the rank that holds least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dalr_stream.numerics.linalg.rank_k import BLOCK_COLUMNS
from dalr_stream.numerics.statistics.fold_rule import Strip, lane_count

_EACH = 2
"""Strips of a wide matrix for each rank, a short one and a long one: more would centre the same columns more often."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A strip, and whose it is."""

    rank: int
    strip: Strip


def share_out(features: Mapping[str, int], ranks: int, *, by_lanes: bool) -> dict[str, tuple[Piece, ...]]:
    """Share out the matrices of some layers, of which each is `features` wide, so that ranks hold about as much.

    A layer's pieces ascend and cover its matrix; with more ranks than blocks of rows some ranks have none. `by_lanes`
    tells whether a matrix is held as often as it has lanes, rather than as often as every other.
    """
    cut = [(name, strip) for name, width in features.items() for strip in _cut(width, ranks)]
    cut.sort(key=lambda one: -_weight(features[one[0]], one[1], by_lanes=by_lanes))
    held, pieces = [0] * ranks, {name: list[Piece]() for name in features}
    for name, strip in cut:
        rank = held.index(min(held))
        held[rank] += _weight(features[name], strip, by_lanes=by_lanes)
        pieces[name].append(Piece(rank, strip))
    return {name: tuple(sorted(own, key=lambda piece: piece.strip.first)) for name, own in pieces.items()}


def blocks_of(strip: Strip) -> Iterator[Strip]:
    """Cut a strip into blocks of rows whose borders depend on the matrix alone."""
    for first in range(strip.first, strip.stop, BLOCK_COLUMNS):
        yield Strip(first, min(first + BLOCK_COLUMNS, strip.stop))


def _cut(features: int, ranks: int) -> Iterator[Strip]:
    """Cut a matrix into strips of about as many blocks each, the upper ones, which are short, of one more."""
    blocks = -(-features // BLOCK_COLUMNS)
    count = 1 if ranks == 1 else min(blocks, _EACH * ranks)
    height, more = divmod(blocks, count)
    first = 0
    for number in range(count):
        stop = min(first + (height + (number < more)) * BLOCK_COLUMNS, features)
        yield Strip(first, stop)
        first = stop


def _weight(features: int, strip: Strip, *, by_lanes: bool) -> int:
    return strip.cells * (lane_count(features) if by_lanes else 1)
