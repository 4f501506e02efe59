"""Rows less their mean, in float64, with what each feature is like: what a fold does first with every block of rows.

A feature that is constant is left exactly zero, and one whose mean dwarfs its spread keeps its covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.linalg.rank_k import BLOCK_COLUMNS
from dalr_stream.numerics.rows.stacked import StackedRows
from dalr_stream.numerics.types import Matrix, Vector

Rows = NDArray[np.generic] | StackedRows
Chosen = NDArray[np.intp]
Run = slice | Chosen
"""Up to `RUN_ROWS` of some rows, by slice or by number."""

RUN_ROWS = 128
"""Rows that have their mean taken off together: 1,024 features of them, in float64, stay in a core's cache."""
_AT_ONCE = 8192
"""Numbers that numpy subtracts in one inner loop at least: each loop takes as long to begin as some 200 of them."""
_SHORT = 4
"""Bytes of a floating-point number of which a run of equal ones adds up in float64 without any rounding."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What one block of rows is, feature by feature: each (d,)."""

    mean: Vector
    maximum: Vector
    minimum: Vector
    nonzero: NDArray[np.int64]


def runs_of(n: int, chosen: Chosen | None = None) -> list[Run]:
    """Part n rows, or those of the `chosen` numbers, into runs of `RUN_ROWS`, the last of which may be shorter."""
    if chosen is None:
        return [slice(first, min(first + RUN_ROWS, n)) for first in range(0, n, RUN_ROWS)]
    return [chosen[first : first + RUN_ROWS] for first in range(0, chosen.size, RUN_ROWS)]


def rows_in(runs: Sequence[Run]) -> int:
    """Return how many rows some runs have together."""
    return sum(_length(run) for run in runs)


def centre(rows: Rows, runs: Sequence[Run], out: Matrix, executor: Executor | None = None) -> Summary:
    """Centre the n of `rows` (N, D) that one run or more have, in their first d columns, and return what they are.

    They go to `out` (n + runs, d), of which `out.T @ out` is the scatter matrix of these rows about their mean: each
    row less the mean of its run, and below them a row for each run, the root of its length times (its mean less the
    mean of all). So `rows` is read once, and what is done with a run is done while a core has it in its cache.

    A constant feature is exactly zero, and one whose mean dwarfs its spread loses nothing: numbers of float64 are taken
    relative to the first row before anything is added up. Shorter ones are not, as what adding up rounds off is less
    than a millionth of what they were rounded by themselves. Rows that hold NaN or Inf give a mean that is not finite.
    The threads of `executor`, where there are some, share the features, in blocks that are the same without them.
    """
    d = out.shape[1]
    summary = Summary(np.empty(d), np.empty(d), np.empty(d), np.empty(d, np.int64))
    blocks = [slice(start, min(start + BLOCK_COLUMNS, d)) for start in range(0, d, BLOCK_COLUMNS)]
    if executor is None or len(blocks) == 1:
        for block in blocks:
            _centre_block(rows, runs, out, block, summary)
    else:
        for done in [executor.submit(_centre_block, rows, runs, out, block, summary) for block in blocks]:
            done.result()
    return summary


def _centre_block(rows: Rows, runs: Sequence[Run], out: Matrix, block: slice, summary: Summary) -> None:
    """Centre one block of columns."""
    lengths = np.array([_length(run) for run in runs])
    stops = np.cumsum(lengths)
    n = int(stops[-1])
    means = out[n:, block]
    short = rows.dtype.kind == "f" and rows.dtype.itemsize <= _SHORT
    origin = None if short else rows[runs[0], block][0].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf: the caller looks at the mean and names the layer
        parts = [
            _centre_run(rows[run, block], out[stop - length : stop, block], mean, origin)
            for run, length, stop, mean in zip(runs, lengths, stops, means, strict=True)
        ]
        first = means[0].copy()
        means -= first
        offset = (means * lengths[:, None]).sum(axis=0) / n
        means -= offset
        means *= np.sqrt(lengths)[:, None]
        summary.mean[block] = first + offset if origin is None else origin + (first + offset)
    maxima, minima, nonzero = zip(*parts, strict=True)
    summary.maximum[block], summary.minimum[block] = np.max(maxima, axis=0), np.min(minima, axis=0)
    summary.nonzero[block] = np.sum(nonzero, axis=0, dtype=np.int64)


def _length(run: Run) -> int:
    return run.stop - run.start if isinstance(run, slice) else run.size


def _centre_run(
    rows: NDArray[np.generic], out: Matrix, mean: Vector, origin: Vector | None
) -> tuple[Vector, Vector, NDArray[np.uint8]]:
    """Write a run less its mean to `out`, and the mean, from `origin` on, to `mean`.

    Returns the run's extrema, and how many are nonzero.
    """
    np.copyto(out, rows)
    if origin is not None:
        _subtract(out, origin)
    out.sum(axis=0, out=mean)
    mean /= len(out)
    _subtract(out, mean)
    nonzero = (rows != 0).view(np.uint8).sum(axis=0, dtype=np.uint8)
    return rows.max(axis=0), rows.min(axis=0), nonzero


def _subtract(rows: Matrix, vector: Vector) -> None:
    """Take a vector off every row, in place: off so many of them at once that numpy's loops are long."""
    times = max(1, _AT_ONCE // vector.size) if rows.flags.c_contiguous else 1
    whole = len(rows) - len(rows) % times
    if times > 1 and whole:
        groups = rows[:whole].reshape(-1, times * vector.size)
        groups -= np.tile(vector, times)
        rows = rows[whole:]
    rows -= vector


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
