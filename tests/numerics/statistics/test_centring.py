"""Centring: the bits are those of a naive twin, in whatever arrays the rows lie, and the sums those of the rows."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from dalr_stream.numerics.rows.stacked import StackedRows
from dalr_stream.numerics.statistics.centring import RUN_ROWS, centre, rows_in, runs_of


def by_runs(rows):
    """The naive twin: every run less its mean, row after row, then a row for each run; and the mean of all."""
    wide = rows.astype(np.float64)
    origin = np.zeros(rows.shape[1]) if rows.dtype == np.float32 else wide[0]
    runs = [wide[start : start + RUN_ROWS] - origin for start in range(0, len(rows), RUN_ROWS)]
    means = [added_up(run) / len(run) for run in runs]
    offset = added_up([(mean - means[0]) * len(run) for mean, run in zip(means, runs, strict=True)]) / len(rows)
    ends = [((mean - means[0]) - offset) * np.sqrt(len(run)) for mean, run in zip(means, runs, strict=True)]
    centred = [run - mean for run, mean in zip(runs, means, strict=True)]
    return origin + (means[0] + offset), np.concatenate([*centred, np.array(ends)])


def added_up(rows):
    total = np.zeros(len(rows[0]))
    for row in rows:
        total += row
    return total


def rows_of(n, d, dtype=np.float32):
    rng = np.random.default_rng(d)
    rows = np.maximum(rng.normal(size=(n, d)) + rng.normal(size=d), 0).astype(dtype)
    rows[:, 0] += 1e4
    rows[:, d // 2] = -0.25
    return rows


def centred(rows, chosen=None, executor=None, d=None):
    runs = runs_of(rows.shape[0], chosen)
    out = np.empty((rows_in(runs) + len(runs), d or rows.shape[1]))
    return centre(rows, runs, out, executor), out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 2), (127, 3), (300, 512), (300, 1100), (257, 5000)])
def test_the_bits_are_those_of_the_naive_twin(n, d, dtype):
    rows = rows_of(n, d, dtype)
    mean, wanted = by_runs(rows)
    with ThreadPoolExecutor(2) as executor:
        for threads in (None, executor):
            summary, out = centred(rows, executor=threads)
            assert np.array_equal(summary.mean, mean)
            assert np.array_equal(out, wanted)
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
    (alone, one), (together, other) = centred(rows if chosen is None else rows[chosen]), centred(parts, chosen)
    assert np.array_equal(one, other)
    for name in ("mean", "maximum", "minimum", "nonzero"):
        assert np.array_equal(getattr(alone, name), getattr(together, name))


def test_the_first_columns_alone_are_centred_where_fewer_are_wanted():
    rows = rows_of(200, 9)
    (whole, out), (first, fewer) = centred(rows), centred(rows, d=4)
    assert np.array_equal(first.mean, whole.mean[:4])
    assert np.array_equal(fewer, out[:, :4])


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_a_constant_feature_is_exactly_zero_whatever_its_value(n, dtype):
    values = np.array([0.1, -3e-5, 1 / 3, 65_000, 5.96e-8, 7, -0.0]).astype(dtype)
    summary, out = centred(np.tile(values, (n, 1)))
    assert not out.any()
    assert np.array_equal(summary.mean, values.astype(np.float64))


@pytest.mark.parametrize(
    ("dtype", "mean", "spread"),
    [(np.float64, 1e8, 1e-6), (np.float64, -1e300, 1e290), (np.float32, 1e6, 1.0), (np.float32, -3e38, 1e33)],
)
@pytest.mark.parametrize("how", ["random", "sorted", "the first is far away"])
def test_a_mean_that_dwarfs_the_spread_loses_nothing(dtype, mean, spread, how):
    """Beside exact fractions: float64 keeps all of its digits; what float32 loses is 2^-29 of its own rounding."""
    column = np.random.default_rng(0).normal(size=999) * spread + mean
    column = np.sort(column) if how == "sorted" else column
    column[0] += 100 * spread * (how == "the first is far away")
    column = column.astype(dtype)
    summary, out = centred(column[:, None])
    exact = [Fraction(float(number)) for number in column]
    middle = sum(exact) / len(exact)
    scatter = sum((number - middle) ** 2 for number in exact)
    rounded_off = np.finfo(np.float64).eps * (64 if dtype is np.float64 else 64 * abs(mean / spread))
    assert abs(Fraction(float(summary.mean[0])) - middle) <= 8 * Fraction(float(np.spacing(abs(summary.mean[0]))))
    found = sum(Fraction(float(number)) ** 2 for number in out[:, 0])
    assert abs(found - scatter) <= scatter * Fraction(rounded_off)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 100, 299])
def test_a_row_that_is_not_finite_shows_in_the_mean(bad, place):
    rows = rows_of(300, 3)
    rows[place, 1] = bad
    summary, _ = centred(rows)
    assert np.isfinite(summary.mean).tolist() == [True, False, True]
