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
from dalr_stream.numerics.types import Matrix, Vector

Rows = NDArray[np.generic]
Chosen = NDArray[np.intp]

RUN_ROWS = 128
"""Centring goes through runs of 512 KiB in float64, which stay in a core's cache between two passes."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What one block of rows is, feature by feature: each (d,)."""

    mean: Vector
    maximum: Vector
    minimum: Vector
    nonzero: NDArray[np.int64]


def centre(rows: Rows, out: Matrix, executor: Executor | None = None, chosen: Chosen | None = None) -> Summary:
    """Write `rows` (N, d) less their mean to `out` (n, d) as float64, and return what they are.

    `chosen` (n,), n >= 1, are the numbers of the rows that are meant: all of them where none are named.

    The first row is taken off before the mean is taken, so a constant feature is left exactly zero and a feature
    whose mean dwarfs its spread loses nothing. Rows that hold NaN or Inf give a mean that is not finite. Features are
    done in blocks with borders that depend on d alone, by the threads of `executor` where there are some, and rows in
    runs that stay in cache: `rows` is read twice, for the mean and to take it off, and `out` is written once.
    """
    d = rows.shape[1]
    summary = Summary(np.empty(d), np.empty(d), np.empty(d), np.empty(d, np.int64))
    blocks = [slice(start, min(start + BLOCK_COLUMNS, d)) for start in range(0, d, BLOCK_COLUMNS)]
    if executor is None or len(blocks) == 1:
        for block in blocks:
            _centre_block(rows, out, block, chosen, summary)
    else:
        for done in [executor.submit(_centre_block, rows, out, block, chosen, summary) for block in blocks]:
            done.result()
    return summary


def _centre_block(rows: Rows, out: Matrix, block: slice, chosen: Chosen | None, summary: Summary) -> None:
    """Centre one block of columns."""
    n = out.shape[0]
    runs = [slice(start, min(start + RUN_ROWS, n)) for start in range(0, n, RUN_ROWS)]
    picked: Sequence[Any] = runs if chosen is None else [chosen[run] for run in runs]
    first = rows[0 if chosen is None else chosen[0], block]
    origin = first.astype(np.float64)
    total = np.zeros_like(origin)
    maximum, minimum = first.copy(), first.copy()
    nonzero = np.zeros(origin.size, np.int64)
    centred = np.empty((RUN_ROWS, origin.size))
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf: the caller looks at the mean and names the layer
        for pick in picked:
            here = rows[pick, block]
            total += _minus(here, origin, centred[: here.shape[0]]).sum(axis=0)
            np.maximum(maximum, here.max(axis=0), out=maximum)
            np.minimum(minimum, here.min(axis=0), out=minimum)
            nonzero += (here != 0).view(np.uint8).sum(axis=0, dtype=np.uint8)
        mean = origin + total / n
        for run, pick in zip(runs, picked, strict=True):
            _minus(rows[pick, block], mean, out[run, block])
    summary.mean[block] = mean
    summary.maximum[block], summary.minimum[block], summary.nonzero[block] = maximum, minimum, nonzero


def _minus(rows: Rows, vector: Vector, out: Matrix) -> Matrix:
    """Write `rows` less `vector` to `out`, in float64; in two steps, as numpy's own conversion is half as fast."""
    np.copyto(out, rows)
    out -= vector
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
