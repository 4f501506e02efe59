"""Centring: the bits are those of sums by runs of rows, in whatever pieces and arrays the rows are gone through."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dalr_stream.numerics.rows.stacked import StackedRows
from dalr_stream.numerics.statistics.centring import RUN_ROWS, centre


def by_runs(rows):
    """The naive twin: the mean by sums of 128 rows one after the other, and the rows less it."""
    wide = rows.astype(np.float64)
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), RUN_ROWS):
        run = wide[start : start + RUN_ROWS] - wide[0]
        part = run[0].copy()
        for row in run[1:]:
            part += row
        total += part
    mean = wide[0] + total / len(rows)
    return mean, wide - mean


def rows_of(n, d):
    rng = np.random.default_rng(d)
    rows = np.maximum(rng.normal(size=(n, d)) + rng.normal(size=d), 0).astype(np.float32)
    rows[:, 0] += 1e4
    rows[:, d // 2] = -0.25
    return rows


@pytest.mark.parametrize(("n", "d"), [(1, 2), (127, 3), (300, 512), (300, 1100), (257, 5000)])
def test_the_bits_are_those_of_sums_by_runs(n, d):
    rows = rows_of(n, d)
    mean, centred = by_runs(rows)
    with ThreadPoolExecutor(2) as executor:
        for threads in (None, executor):
            out = np.empty((n, d))
            summary = centre(rows, out, threads)
            assert np.array_equal(summary.mean, mean)
            assert np.array_equal(out, centred)
            assert np.array_equal(summary.maximum, rows.max(axis=0))
            assert np.array_equal(summary.minimum, rows.min(axis=0))
            assert np.array_equal(summary.nonzero, (rows != 0).sum(axis=0))


@pytest.mark.parametrize("d", [5, 1100])
@pytest.mark.parametrize("sizes", [[700], [64, 636], [100, 28, 572], [0, 699, 1]])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_rows_in_several_arrays_have_the_same_bits(d, sizes, share):
    rows = rows_of(700, d)
    chosen = None if share == 1.0 else np.flatnonzero(np.random.default_rng(1).random(700) < share)
    parts = StackedRows(np.split(rows, np.cumsum(sizes)[:-1]))
    meant = rows if chosen is None else rows[chosen]
    one, other = (np.empty(meant.shape) for _ in range(2))
    alone, together = centre(meant, one), centre(parts, other, chosen=chosen)
    assert np.array_equal(one, other)
    for name in ("mean", "maximum", "minimum", "nonzero"):
        assert np.array_equal(getattr(alone, name), getattr(together, name))


def test_the_first_columns_alone_are_centred_where_fewer_are_wanted():
    rows = rows_of(200, 9)
    whole, first = np.empty((200, 9)), np.empty((200, 4))
    mean = centre(rows, whole).mean
    assert np.array_equal(centre(rows, first).mean, mean[:4])
    assert np.array_equal(first, whole[:, :4])
