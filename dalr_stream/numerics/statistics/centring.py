"""Rows less their mean, in float64, with what each feature is like: the first pass over every block of rows.

A feature that is constant is left exactly zero, and one whose mean dwarfs its spread keeps its covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.linalg.rank_k import BLOCK_COLUMNS
from dalr_stream.numerics.rows.stacked import StackedRows
from dalr_stream.numerics.types import Matrix, Vector

Rows = NDArray[np.generic] | StackedRows
Chosen = NDArray[np.intp]

RUN_ROWS = 128
"""Rows are added up by runs: of so many one after the other, and then run after run. That decides the mean's bits."""
_PIECE = 65_536
"""Numbers, of one run or of a part of it, that stay in a core's cache between two passes: 512 KiB in float64."""
_AT_ONCE = 8192
"""Numbers that numpy subtracts in one inner loop at least: each loop takes as long to begin as some 200 of them."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What one block of rows is, feature by feature: each (d,)."""

    mean: Vector
    maximum: Vector
    minimum: Vector
    nonzero: NDArray[np.int64]


def centre(rows: Rows, out: Matrix, executor: Executor | None = None, chosen: Chosen | None = None) -> Summary:
    """Write `rows` (N, D), their first d columns, less their mean to `out` (n, d) as float64, and return what they are.

    `chosen` (n,), n >= 1, are the numbers of the rows that are meant: all of them where none are named.

    The first row is taken off before the mean is taken, so a constant feature is left exactly zero and a feature
    whose mean dwarfs its spread loses nothing. Rows that hold NaN or Inf give a mean that is not finite. The threads of
    `executor`, where there are some, share the features, each of which is summed up by itself; rows are done in pieces
    that stay in cache: `rows` is read twice, for the mean and to take it off, and `out` is written once.
    """
    d = out.shape[1]
    summary = Summary(np.empty(d), np.empty(d), np.empty(d), np.empty(d, np.int64))
    if executor is None or d <= BLOCK_COLUMNS:
        _centre_block(rows, out, slice(0, d), chosen, summary)
        return summary
    blocks = [slice(start, min(start + BLOCK_COLUMNS, d)) for start in range(0, d, BLOCK_COLUMNS)]
    for done in [executor.submit(_centre_block, rows, out, block, chosen, summary) for block in blocks]:
        done.result()
    return summary


def _centre_block(rows: Rows, out: Matrix, block: slice, chosen: Chosen | None, summary: Summary) -> None:
    """Centre one block of columns."""
    n, d = out[:, block].shape
    pieces = [slice(start, min(start + _piece_rows(d), n)) for start in range(0, n, _piece_rows(d))]
    picked: Sequence[Any] = pieces if chosen is None else [chosen[piece] for piece in pieces]
    first = rows[0 if chosen is None else chosen[0], block]
    origin = first.astype(np.float64)
    total, repeated = np.zeros_like(origin), _repeated(origin)
    maximum, minimum = first.copy(), first.copy()
    nonzero = np.zeros(origin.size, np.int64)
    run = np.empty((1 + _piece_rows(d), d))  # the first row has the sum of the run's pieces before this one
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf: the caller looks at the mean and names the layer
        for piece, pick in zip(pieces, picked, strict=True):
            here = rows[pick, block]
            _minus(here, repeated, run[1 : 1 + len(here)])
            begins = piece.start % RUN_ROWS == 0
            run[0] = run[begins : 1 + len(here)].sum(axis=0)
            if piece.stop % RUN_ROWS == 0 or piece.stop == n:
                total += run[0]
            np.maximum(maximum, here.max(axis=0), out=maximum)
            np.minimum(minimum, here.min(axis=0), out=minimum)
            nonzero += (here != 0).view(np.uint8).sum(axis=0, dtype=np.uint8)
        mean = origin + total / n
        repeated = _repeated(mean)
        for piece, pick in zip(reversed(pieces), reversed(picked), strict=True):  # the last ones are still in cache
            _minus(rows[pick, block], repeated, out[piece, block])
    summary.mean[block] = mean
    summary.maximum[block], summary.minimum[block], summary.nonzero[block] = maximum, minimum, nonzero


def _piece_rows(features: int) -> int:
    """Return how many rows, a part of a run, stay in a core's cache between two passes."""
    rows = RUN_ROWS
    while rows > 1 and rows * features > _PIECE:
        rows //= 2
    return rows


def _repeated(vector: Vector) -> Matrix:
    """(t, d): a vector for each of so many rows that numpy subtracts `_AT_ONCE` numbers at once."""
    return np.tile(vector, (max(1, _AT_ONCE // vector.size), 1))


def _minus(rows: NDArray[np.generic], repeated: Matrix, out: Matrix) -> Matrix:
    """Write `rows` less a vector to `out`, in float64; in two steps, as numpy's own conversion is half as fast."""
    np.copyto(out, rows)
    times = len(repeated)
    whole = len(out) - len(out) % times if out.flags.c_contiguous else 0
    groups = out[:whole].reshape(-1, repeated.size)
    groups -= repeated.reshape(-1)
    rest = out[whole:]
    rest -= repeated[0]
    return out


def describe_non_finite(rows: NDArray[np.generic]) -> str:
    """Say how many NaN and Inf there are, and in which feature the first one stands."""
    bad = ~np.isfinite(rows.astype(np.float64, copy=False))
    columns = np.flatnonzero(bad.any(axis=0))
    if columns.size == 0:
        return "values so large that their differences overflow float64"
    nan = int(np.isnan(rows).sum())
    where = f"feature {columns[0]}"
    if columns.size > 1:
        where = f"{columns.size} features, the first in {where}"
    return f"{nan} NaN and {int(bad.sum()) - nan} Inf in {where}"
