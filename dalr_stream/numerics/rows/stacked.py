"""Rows that lie in several arrays, one below the other: a tile as its batches came, with nothing copied to join them.

A fold reads a tile in runs of rows, and a run mostly lies within one array. Joining all of them first would read and
write every row once more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

Part = NDArray[Any]
FEWEST_ROWS = 64
"""Arrays of fewer rows, on average, are joined: every run would be put together of several."""


class StackedRows:
    """Reads like one array (n, d) of the same rows, where a slice of columns is asked for beside the rows."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """`parts`: one or more, (n_i, d), all of one dtype."""
        self._parts = tuple(parts)
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self.shape = self._starts[-1], int(parts[0].shape[1])
        self.dtype = parts[0].dtype

    def __getitem__(self, place: tuple[Any, slice]) -> Part:
        """Return rows by number, by a slice of step 1 or by ascending numbers: a view where one array has them all."""
        rows, columns = place
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(self.shape[0])
            here = self._with(first, max(first, stop - 1))
            found = [part[max(first - start, 0) : stop - start, columns] for start, part in here]
        elif np.ndim(rows) == 0:
            (start, part), *_ = self._with(rows, rows)
            return part[rows - start, columns]
        else:
            here = self._with(int(rows[0]), int(rows[-1]))
            cuts = np.searchsorted(rows, [start for start, _ in here[1:]])
            numbers = np.split(rows, cuts)
            found = [part[own - start, columns] for (start, part), own in zip(here, numbers, strict=True)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Part:  # noqa: FBT001  # numpy's own
        """Join the rows: a new array."""
        joined = np.concatenate(self._parts)
        return joined if dtype is None else joined.astype(dtype, copy=False)

    def _with(self, first: int, last: int) -> list[tuple[int, Part]]:
        """Return the arrays that have rows `first` to `last`, each with the number of its first row."""
        begin, end = bisect_right(self._starts, first) - 1, bisect_right(self._starts, last)
        return list(zip(self._starts[begin:end], self._parts[begin:end], strict=False))


def stacked(parts: Sequence[Part]) -> Part | StackedRows:
    """Return the rows of some arrays, one below the other, as one array where that is no worse."""
    if len(parts) == 1:
        return parts[0]
    rows, kinds = sum(len(part) for part in parts), {part.dtype for part in parts}
    if len(kinds) > 1 or rows < FEWEST_ROWS * len(parts):
        return np.concatenate(parts)
    return StackedRows(parts)
