"""Laws of the moments record: how it adds, subtracts, and keeps its digits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_rows, row_blocks

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.statistics.moments import Moments


@st.composite
def blocks(draw, count):
    """Blocks of rows of one layer, any of which may have one row or none."""
    first = draw(row_blocks())
    kinds = st.sampled_from(["generic", "dead", "constant", "huge_mean", "one_sample", "relu"])
    parts = [first] + [
        make_rows(draw(kinds), draw(st.integers(1, 30)), first.shape[1], draw(st.integers(0, 2**31)))
        for _ in range(count - 1)
    ]
    return [part[: draw(st.sampled_from([None, 0, 1]))] for part in parts]


def scale_of(*rows):
    """Largest magnitude a feature has, squared and summed: what rounding of its sums is relative to."""
    whole = np.concatenate(rows)
    root = np.sqrt(np.maximum((whole**2).sum(axis=0), 1e-300))
    return root, np.outer(root, root)


def assert_close(a, b, *rows):
    root, product = scale_of(*rows)
    assert (a.count, a.samples) == (b.count, b.samples)
    assert np.array_equal(a.nonzero, b.nonzero)
    assert (np.abs(a.mean - b.mean) <= 1e-13 * root).all()
    assert (np.abs(a.scatter - b.scatter) <= 1e-12 * product).all()


@given(blocks(2))
def test_addition_commutes_to_the_bit(parts):
    a, b = map(Moments.of, parts)
    assert (a + b).same_bits(b + a)


@given(row_blocks())
def test_no_rows_are_the_identity(rows):
    a = Moments.of(rows)
    nothing = Moments.empty(a.features)
    assert (a + nothing).same_bits(a)
    assert (nothing + a).same_bits(a)
    assert (a - nothing).same_bits(a)


@given(blocks(3))
def test_addition_associates_to_rounding_and_equals_the_whole(parts):
    if sum(map(len, parts)) == 0:
        return
    a, b, c = map(Moments.of, parts)
    assert_close((a + b) + c, a + (b + c), *parts)
    whole = Moments.of(np.concatenate(parts))
    assert_close((a + b) + c, whole, *parts)
    assert np.array_equal(((a + b) + c).max_abs, whole.max_abs)
    assert np.array_equal(((a + b) + c).maximum, whole.maximum)


@given(blocks(2))
def test_subtraction_undoes_addition(parts):
    a, b = map(Moments.of, parts)
    back = (a + b) - b
    if a.count and b.count:
        assert_close(back, a, *parts)
        assert np.isnan(back.max_abs).all()
        assert np.isnan(back.maximum).all()
    else:
        assert back.count == a.count


def test_what_was_never_added_cannot_be_taken_away():
    a, b = Moments.of(np.ones((2, 3))), Moments.of(np.ones((5, 3)))
    with pytest.raises(InvalidInputError, match="5 rows of 3 features cannot be taken from 2 rows of 3"):
        a - b
    with pytest.raises(InvalidInputError, match="3 and of 4 features cannot be added"):
        a + Moments.of(np.ones((2, 4)))


@pytest.mark.parametrize("parts", [1, 7])
def test_a_mean_of_ten_thousand_spreads_keeps_its_covariance(parts):
    """To 1e-12 of sqrt(C_ii C_jj), whole or added up; float32 sums about zero lose all of it."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(4000, 20)) @ rng.normal(size=(20, 20))
    offset = 1e4 * spread.std(axis=0)
    rows = spread + offset
    exact = (rows - offset).astype(np.longdouble)  # what the float64 rows really hold about the offset
    exact = exact - exact.mean(axis=0)
    covariance = (exact.T @ exact / len(rows)).astype(np.float64)
    total = Moments.empty(20)
    for part in np.array_split(rows, parts):
        total = total + Moments.of(part)
    unit = np.sqrt(np.outer(np.diagonal(covariance), np.diagonal(covariance)))
    assert (np.abs(total.covariance - covariance) / unit).max() <= 1e-12


def test_rows_sorted_by_class_with_a_feature_dead_in_the_first_block():
    """The first block says nothing about the feature that matters in the last."""
    rng = np.random.default_rng(1)
    classes = [rng.normal(size=(50, 4)) + 100.0 * c for c in range(4)]
    classes[0][:, 3] = 0.0
    rows = np.concatenate(classes)
    total = Moments.empty(4)
    for part in classes:
        total = total + Moments.of(part)
    np.testing.assert_allclose(total.covariance, np.cov(rows.T, bias=True), rtol=1e-13)
    np.testing.assert_allclose(total.mean, rows.mean(axis=0), rtol=1e-14)
    assert total.nonzero.tolist() == [200, 200, 200, 150]


@given(
    st.floats(-1e6, 1e6), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([np.float32, np.float64])
)
def test_constant_features_have_exactly_zero_variance(value, sizes, dtype):
    total = Moments.empty(2)
    for n in sizes:
        rows = np.full((n, 2), value, dtype)
        rows[:, 1] = np.arange(n)
        total = total + Moments.of(rows)
    assert total.variance[0] == 0.0
    assert total.covariance[0, 1] == total.covariance[1, 0] == 0.0
    assert total.mean[0] == dtype(value)


@given(row_blocks())
def test_views_are_the_sums_of_the_rows(rows):
    m = Moments.of(rows)
    n = len(rows)
    _, product = scale_of(rows)
    assert (np.abs(m.gram - rows.T @ rows) <= 1e-12 * product).all()
    assert (np.abs(m.second_moment * n - rows.T @ rows) <= 1e-12 * product).all()
    assert (
        np.abs(m.covariance * n - (rows - rows.mean(axis=0)).T @ (rows - rows.mean(axis=0))) <= 1e-12 * product
    ).all()
    centre = np.arange(rows.shape[1], dtype=float)
    _, about = scale_of(rows, rows - centre)
    assert (np.abs(m.scatter_about(centre) - (rows - centre).T @ (rows - centre)) <= 1e-12 * about).all()
    np.testing.assert_array_equal(m.active_rate, (rows != 0).mean(axis=0))
    np.testing.assert_array_equal(m.max_abs, np.abs(rows).max(axis=0))
    np.testing.assert_array_equal(m.maximum, rows.max(axis=0))
    assert (m.scatter == m.scatter.T).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_named_with_their_feature(bad):
    rows = np.ones((6, 5), np.float32)
    rows[4, 3] = bad
    kind = "1 NaN and 0 Inf" if np.isnan(bad) else "0 NaN and 1 Inf"
    with pytest.raises(NonFiniteError, match=f"{kind} in feature 3"):
        Moments.of(rows)


def test_views_of_no_rows_are_refused():
    for view in ("covariance", "second_moment", "variance", "active_rate"):
        with pytest.raises(InvalidInputError, match="moments of no rows"):
            getattr(Moments.empty(2), view)
