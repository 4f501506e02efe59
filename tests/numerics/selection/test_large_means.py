"""Uncentred selections of features whose mean dwarfs their spread: the order is that of exact arithmetic."""

import numpy as np
import pytest
from oracles import exact_greedy_spectral, greedy_spectral

import dalr_stream as ds
from dalr_stream.numerics.selection import residual

D, TAKEN = 9, 7


def moments_about(mean, seed, spread=1.0, rows=60):
    """Correlated features of a known mean, exact to the last bit of mean and scatter as they stand."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, D)) @ rng.normal(size=(D, D)) * np.exp(rng.normal(size=D))
    x *= spread / x.std()
    return ds.Moments.of(x - x.mean(0) + mean * np.exp(0.3 * rng.normal(size=D)))


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_that_of_rational_numbers(mean, seed):
    moments = moments_about(mean, seed)
    assert ds.spectral(moments, limit=TAKEN).order.tolist() == exact_greedy_spectral(moments, TAKEN)


def test_the_sum_of_covariance_and_mean_has_lost_it():
    """What the twin in floating-point arithmetic takes, from the matrix as one number an entry: another order."""
    orders = [(moments_about(1e7, seed), exact_greedy_spectral(moments_about(1e7, seed), TAKEN)) for seed in range(4)]
    assert any(greedy_spectral(moments.second_moment)[:TAKEN] != exact for moments, exact in orders)


@pytest.mark.parametrize("seed", range(3))
def test_sizes_restore_and_retention_are_those_of_the_order(seed):
    """A_J from the factor, against least squares on a root of the covariance and the row of the mean."""
    moments = moments_about(1e5, seed)
    selection = ds.spectral(moments)
    root = np.linalg.cholesky(moments.covariance).T
    rows = np.vstack([root, moments.mean])
    for k in (1, 3, 6):
        at = selection.at_size(k)
        expected, *_ = np.linalg.lstsq(rows[:, at.kept], rows, rcond=1e-16)
        left = np.linalg.norm(rows - rows[:, at.kept] @ at.restore.T)
        best = np.linalg.norm(rows - rows[:, at.kept] @ expected)
        assert left <= best * (1 + 1e-4)
    assert selection.retention[-1] == 1.0
    assert (np.diff(selection.retention) >= 0).all()


def test_momasp_too(monkeypatch):
    """With equal domains it is spectral pruning; with others the penalty weighs what is left beside the mean."""
    moments, other = moments_about(1e6, 0), moments_about(1e6, 1)
    order = ds.momasp(moments, moments).order
    assert order.tolist() == ds.spectral(moments).order.tolist()
    whole = ds.momasp(moments, other, strength=0.5).order.tolist()
    monkeypatch.setattr(residual, "BLOCK", 2)
    assert ds.momasp(moments, other, strength=0.5).order.tolist() == whole


def test_a_constant_feature_stands_for_the_mean_of_all():
    """Once it is taken, what is left is the covariance alone: the order of the affine selection."""
    x = np.random.default_rng(0).normal(size=(80, 6)) * np.arange(1, 7) + 1e5
    x[:, 2] = 3e5
    moments = ds.Moments.of(x)
    order = ds.spectral(moments).order.tolist()
    centred = ds.spectral(moments, affine=True).order.tolist()
    after = order.index(2)
    exact = exact_greedy_spectral(moments, 6)
    assert order == exact
    assert order[after + 1 :] == [node for node in centred if node in order[after + 1 :]]


def test_duplicates_of_large_mean_explain_nothing_more():
    x = np.random.default_rng(0).normal(size=(50, 3)) + 1e5
    moments = ds.Moments.of(np.hstack([x, 3 * x, x[:, :1]]))
    selection = ds.spectral(moments)
    assert selection.not_live.size in {3, 4}
    assert len(set(selection.order[:3] % 3)) == 3


@pytest.mark.parametrize("d", [40])
def test_blocks_and_limits_do_not_show(monkeypatch, d):
    rng = np.random.default_rng(3)
    moments = ds.Moments.of(rng.normal(size=(200, d)) @ rng.normal(size=(d, d)) + 1e6)
    whole = ds.spectral(moments)
    assert ds.spectral(moments, limit=10).order.tolist() == whole.order[:10].tolist()
    for block in (1, 5, 17):
        monkeypatch.setattr(residual, "BLOCK", block)
        assert ds.spectral(moments).order.tolist() == whole.order.tolist()
