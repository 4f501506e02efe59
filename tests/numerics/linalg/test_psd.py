"""Eigenvalues and ridge systems: right, repeatable, and never an error out of LAPACK."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import row_blocks

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Route
from dalr_stream.numerics.linalg.psd import numerical_rank, symmetric_eigen, thin_svd
from dalr_stream.numerics.linalg.ridge_factor import factor_ridge


@given(row_blocks())
def test_eigen_rebuilds_the_matrix_with_descending_values(rows):
    s = rows.T @ rows
    eigen = symmetric_eigen(s)
    assert (np.diff(eigen.values) <= 0).all()
    scale = max(np.trace(s), 1e-300)
    np.testing.assert_allclose(eigen.vectors * eigen.values @ eigen.vectors.T, s, atol=1e-13 * scale)
    np.testing.assert_allclose(eigen.vectors.T @ eigen.vectors, np.eye(len(s)), atol=1e-13)


def test_signs_follow_the_largest_entry():
    rng = np.random.default_rng(0)
    s = rng.normal(size=(30, 20))
    vectors = symmetric_eigen(s.T @ s).vectors
    left = thin_svd(s).left
    for columns in (vectors, left):
        assert (columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])] > 0).all()


def test_svd_rebuilds_the_matrix():
    w = np.random.default_rng(1).normal(size=(7, 12))
    svd = thin_svd(w)
    np.testing.assert_allclose(svd.left * svd.values @ svd.right, w, atol=1e-13)


@pytest.mark.parametrize("rank", [0, 1, 5, 9])
def test_the_numerical_rank_is_that_of_the_factor(rank):
    b = np.random.default_rng(rank).normal(size=(9, rank))
    assert numerical_rank(symmetric_eigen(b @ b.T).values) == rank


@given(row_blocks(), st.sampled_from([0.0, 1e-14, 1e-9, 1e-3, 10.0]), st.integers(1, 6))
def test_ridge_regression_is_the_stationary_point(rows, relative, m):
    """M (S + ridge I) = W S, whatever the rank of S and whichever the route."""
    s = rows.T @ rows
    d = len(s)
    ridge = relative * np.trace(s) / d
    w = np.random.default_rng(m).normal(size=(m, d))
    factor = factor_ridge(s, ridge)
    y = factor.half_fit(w, lambda left: left @ s)
    fit = factor.pull_back(y).T
    scale = max(np.linalg.norm(w) * np.trace(s), 1e-300)
    np.testing.assert_allclose(fit @ s + ridge * fit, w @ s, atol=1e-8 * scale)
    np.testing.assert_allclose(y.T @ y, fit @ s @ w.T, atol=1e-9 * max(np.linalg.norm(w) ** 2 * np.trace(s), 1e-300))


def test_routes_by_the_stated_rule():
    rows = np.random.default_rng(2).normal(size=(40, 6))
    s = rows.T @ rows
    singular = np.outer(rows[0], rows[0])
    assert factor_ridge(s, 0.0).route is Route.CHOLESKY
    assert factor_ridge(singular, 1e-3 * np.trace(singular)).route is Route.CHOLESKY
    by_eigen = factor_ridge(singular, 0.0)
    assert (by_eigen.route, by_eigen.rank) == (Route.EIGEN, 1)
    assert factor_ridge(np.zeros((3, 3)), 0.0).rank == 0


def test_both_routes_agree_at_a_relative_ridge_of_a_millionth():
    """DESIGN section 3: to 1e-8 in C."""
    rows = np.random.default_rng(3).normal(size=(20, 30))  # rank 20 of 30
    s = rows.T @ rows
    ridge = 1e-6 * np.trace(s) / 30
    w = np.random.default_rng(4).normal(size=(5, 30))
    cholesky = factor_ridge(s, ridge)
    assert cholesky.route is Route.CHOLESKY
    values, vectors = np.linalg.eigh(s)
    exact = (w @ vectors * (np.maximum(values, 0) / (np.maximum(values, 0) + ridge))) @ vectors.T
    assert np.linalg.norm(
        cholesky.pull_back(cholesky.half_fit(w, lambda left: left @ s)).T - exact
    ) <= 1e-8 * np.linalg.norm(exact)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_is_named(bad):
    matrix = np.eye(4)
    matrix[2, 1] = bad
    for solve in (symmetric_eigen, thin_svd, lambda s: factor_ridge(s, 1.0)):
        with pytest.raises(InvalidInputError, match="must be finite, got 1 NaN or Inf"):
            solve(matrix)


def test_the_input_is_left_alone():
    s = np.eye(5) + 0.1
    s.setflags(write=False)
    kept = s.copy()
    factor_ridge(s, 0.5).half_fit(np.ones((2, 5)), lambda left: left @ s)
    symmetric_eigen(s)
    assert (s == kept).all()


@pytest.mark.parametrize("scale", [1e-160, 1e-200, 1e200, 1e280])
def test_the_margin_does_not_depend_on_units(scale):
    x = np.random.default_rng(5).normal(size=(50, 6))
    factor, scaled = factor_ridge(x.T @ x, 1e-3), factor_ridge(x.T @ x * scale, 1e-3 * scale)
    assert scaled.route is Route.CHOLESKY
    assert scaled.margin == pytest.approx(factor.margin, rel=1e-12)
