"""The ridge that moments decide by themselves: the paper's estimator, from counts and traces alone."""

import warnings

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import row_blocks

from dalr_stream.errors import FewSamplesWarning, InvalidInputError
from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows
from dalr_stream.numerics.lowrank.ridge import MOST_SHRINKAGE, Ridge, shrinkage_share
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments

SHRINKAGE = Ridge.shrinkage()


def lam(rows, *, centred=True, samples=None):
    moments = Moments.of(rows, samples=samples)
    return SHRINKAGE.of_moments(moments, moments.mean if centred else np.zeros(moments.features))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (100, 5), (5, 2)])
def test_the_matrix_with_the_ridge_is_the_papers_estimate_up_to_scale(shape, centred):
    rows = np.random.default_rng(1).normal(size=shape) @ np.diag(1.0 + np.arange(shape[1])) + 2.0
    rho, shrunk = oracles.oas(rows.T, centred)
    assert 0.0 < rho < 1.0
    s = oracles.second_order(rows.T, centred) * len(rows)
    ours = s + lam(rows, centred=centred) * np.eye(shape[1])
    np.testing.assert_allclose((1.0 - rho) * ours / len(rows), shrunk, rtol=1e-10, atol=1e-12)


def test_it_is_what_scikit_learn_computes_but_for_two_over_d():
    covariance = pytest.importorskip("sklearn.covariance")
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(60, 200)) @ np.diag(rng.uniform(0.5, 2.0, size=200))
    theirs = covariance.OAS().fit(rows).shrinkage_
    s = Moments.of(rows)
    ours = shrinkage_share(np.trace(s.scatter), s.squares_about(s.mean), 60, 200)
    assert ours == pytest.approx(theirs, rel=4 / 200)


@given(row_blocks(), st.booleans(), st.sampled_from([1e-5, 1.0, 1e5]))
def test_any_rows_give_a_finite_ridge_that_goes_with_their_units(rows, centred, scale):
    ridge = lam(rows, centred=centred)
    assert 0.0 <= ridge < np.inf
    size = np.sum(rows**2)
    assert lam(scale * rows, centred=centred) == pytest.approx(scale**2 * ridge, rel=1e-6, abs=1e-9 * scale**2 * size)


def test_more_samples_shrink_less_and_white_rows_need_nothing():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(400, 10)) @ np.diag(1.0 + np.arange(10))
    relative = [lam(rows[:n]) / np.trace(Moments.of(rows[:n]).scatter) for n in (5, 20, 100, 400)]
    assert (np.diff(relative) < 0).all()
    assert lam(rows, samples=40) > 5 * lam(rows)  # rows of one sample are alike
    assert lam(np.eye(4), centred=False) == 0.0
    assert lam(rng.normal(size=(9, 1))) == 0.0
    assert shrinkage_share(1.0, 0.50001, 1, 2) == 1.0
    few = lam(rows[:2])
    assert few <= MOST_SHRINKAGE / (1.0 - MOST_SHRINKAGE) * np.trace(Moments.of(rows[:2]).scatter)


@pytest.mark.parametrize("variant", ["published", "optimal", "anchored", "weighted"])
def test_every_variant_takes_it_and_says_so(variant):
    rng = np.random.default_rng(4)
    weight, rows = rng.normal(size=(6, 5)), rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 1.0
    gradients = Moments.of(rng.normal(size=(12, 6)) @ rng.normal(size=(6, 6)))
    options = {"variant": variant, "gradients": gradients, "gradient_ridge": "shrinkage"}
    f = dalr(weight, None, Moments.of(rows), ridge="shrinkage", **options)
    expected = lam(rows, centred=variant != "published")
    assert f.diagnostics.ridge == pytest.approx(expected, rel=1e-12)
    assert "ridge by shrinkage, from 40 samples" in f.diagnostics.notes
    same = dalr(weight, None, Moments.of(rows), ridge=Ridge.absolute(expected), **options)
    np.testing.assert_allclose(f.objective, same.objective, rtol=1e-10)
    if variant == "weighted":
        by_hand = SHRINKAGE.of_moments(gradients, np.zeros(6)) / 12
        assert f.diagnostics.gradient_ridge == pytest.approx(by_hand, rel=1e-12)


def test_rows_and_two_runs_give_the_same_ridge_as_the_moments():
    rng = np.random.default_rng(5)
    weight, rows = rng.normal(size=(6, 30)), rng.normal(size=(12, 30)) + 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        solutions = [
            dalr(weight, None, Moments.of(rows), ridge="shrinkage", variant="optimal"),
            dalr_from_rows(weight, None, [rows], ridge="shrinkage", variant="optimal"),
            dalr_from_rows(weight, None, [rows], ridge="shrinkage", variant="optimal", root=True),
            dalr(weight, None, CrossMoments.of(rows, rows @ weight.T), ridge="shrinkage", variant="optimal"),
        ]
    for f in solutions:
        assert f.diagnostics.ridge == pytest.approx(solutions[0].diagnostics.ridge, rel=1e-9)
        assert any("by shrinkage, from 12 samples" in note for note in f.diagnostics.notes)


def test_where_the_inputs_are_not_known_it_is_refused():
    rng = np.random.default_rng(6)
    weight, rows = rng.normal(size=(3, 5)), rng.normal(size=(20, 5))
    with pytest.raises(InvalidInputError, match=r"'shrinkage' needs .* got those of the outputs"):
        dalr(weight, None, Moments.of(rows @ weight.T), ridge="shrinkage", side="outputs")
    with pytest.raises(InvalidInputError, match="ridge 'shrinkage' needs the moments of the layer's inputs"):
        dalr_from_rows(weight, None, [rows], ridge="shrinkage")
    with pytest.raises(InvalidInputError, match="ridge must be a number, which is relative, or a Ridge, got 'oas'"):
        Ridge.of("oas")
    assert Ridge.of("shrinkage") == SHRINKAGE
