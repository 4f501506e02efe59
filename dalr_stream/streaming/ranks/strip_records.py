"""Moments of layers whose sums ranks share, on their way to rank 0: whole rows of a matrix, a block of them at a time.

Ranks hold rows of the lower triangle. A whole row goes on above the diagonal with a column of the rows below it, so for
each block of rows everybody who holds some of these rows and columns sends them; nobody ever holds the matrix, and what
is written to a disk is written once, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import FoldState, LaneState
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.statistics.strip_shares import blocks_of
from dalr_stream.streaming.ranks.link import Link, Message
from dalr_stream.streaming.ranks.strip_sums import StripSums
from dalr_stream.streaming.ranks.sums_message import strip_from, strip_message

Panels = Iterator[NDArray[np.float64]]
"""Whole rows of a symmetric matrix, some at a time, in order."""


class StripRecords:
    """What one rank does for the moments of a layer to be put together on rank 0, once it has ended."""

    def __init__(self, link: Link, sums: StripSums) -> None:
        self._link = link
        self._sums = sums

    def send(self, name: str) -> None:
        """Send what this rank holds of a layer, in the order in which rank 0 takes it, and give it up."""
        for part in self._sums.parts(name):
            totals = self._totals(name, part)
            if self._last_rank(name) == self._link.rank:
                self._link.send(0, strip_message(LaneState(_without_rows(totals[-1]), None)))
            for block in self._blocks(name) if totals and totals[0].count else ():
                for strip, total in zip(self._sums.own(name), totals, strict=True):
                    if strip.stop > block.first:
                        self._link.send(0, Message(arrays=_cells(total, strip, block)))
        self._sums.drop(name)

    def taken(self, name: str) -> Iterator[tuple[str, FoldState, Panels]]:
        """Yield each record of a layer, all but its matrix, and the rows of that: to be gone through, one by one."""
        for part in self._sums.parts(name):
            totals = self._totals(name, part)
            rank = self._last_rank(name)
            last = strip_from(self._link.receive(rank)).training if rank else _without_rows(totals[-1])
            yield part, last, self._panels(name, totals) if last.count else iter(())
        self._sums.drop(name)

    def _panels(self, name: str, totals: list[FoldState]) -> Panels:
        pieces = self._sums.pieces[name]
        for block in self._blocks(name):
            panel, own = np.empty((block.stop - block.first, pieces[-1].strip.stop)), iter(totals)
            for rank, strip in ((piece.rank, piece.strip) for piece in pieces):
                total = next(own) if rank == 0 else None
                if strip.stop > block.first:
                    arrays = _cells(total, strip, block) if total is not None else self._link.receive(rank).arrays
                    _place(panel, strip, block, iter(arrays))
            yield panel

    def _totals(self, name: str, part: str) -> list[FoldState]:
        return [self._sums.total(name, place, part) for place, _ in enumerate(self._sums.own(name))]

    def _blocks(self, name: str) -> Iterator[Strip]:
        return blocks_of(Strip(0, self._sums.pieces[name][-1].strip.stop))

    def _last_rank(self, name: str) -> int:
        """Return the rank of the last strip, whose vectors are those of all features."""
        return self._sums.pieces[name][-1].rank


def moments_of(last: FoldState, panels: Panels) -> Moments:
    """Put a record together in memory."""
    d = last.mean.size
    if last.count == 0:
        return Moments.empty(d)
    scatter, first = np.empty((d, d)), 0
    for panel in panels:
        scatter[first : first + len(panel)] = panel
        first += len(panel)
    max_abs = np.maximum(np.abs(last.maximum), np.abs(last.minimum))
    return Moments(last.count, last.samples, last.mean, scatter, max_abs, last.maximum, last.nonzero)


def _without_rows(state: FoldState) -> FoldState:
    return replace(state, scatter=state.scatter[:0])


def _cells(total: FoldState, strip: Strip, block: Strip) -> Iterator[NDArray[Any]]:
    """Yield what a strip has of whole rows: their part left of the diagonal, where it is its own, and their columns."""
    if strip.first <= block.first:
        yield total.scatter[block.first - strip.first : block.stop - strip.first, : block.first]
    for below in blocks_of(Strip(max(block.first, strip.first), strip.stop)):
        yield total.scatter[below.first - strip.first : below.stop - strip.first, block.first : block.stop]


def _place(panel: NDArray[np.float64], strip: Strip, block: Strip, arrays: Iterator[NDArray[Any]]) -> None:
    """Put what `_cells` gives in its place among whole rows."""
    if strip.first <= block.first:
        panel[:, : block.first] = next(arrays)
    for below in blocks_of(Strip(max(block.first, strip.first), strip.stop)):
        cells = next(arrays)
        if below == block:
            cells = np.tril(cells) + np.tril(cells, -1).T
        panel[:, below.first : below.stop] = cells.T
