"""Outputs of one run regressed on the inputs of another: against dense oracles that hold the rows of both."""

import warnings

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import KINDS, PLAIN_VARIANTS, make_rows

from dalr_stream.errors import FewSamplesWarning, InvalidInputError, ParameterIncreaseWarning
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.methods import Variant
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments

pytestmark = pytest.mark.filterwarnings(
    "ignore::dalr_stream.errors.OutlierFeaturesWarning"  # features of many scales are drawn
)

TINY = 1e-300
RIDGES = st.sampled_from([Ridge.relative(0.0), Ridge.relative(1e-3), Ridge.relative(0.5), Ridge.absolute(10.0)])


@st.composite
def two_runs(draw):
    """Inputs (n, d) of any kind, outputs (n, m) of another run: near W x + b, or unlike it; weight and bias."""
    kind = draw(st.sampled_from(KINDS))
    rows = make_rows(kind, draw(st.integers(1, 40)), draw(st.integers(1, 9)), draw(st.integers(0, 2**32 - 1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight, bias = rng.normal(size=(draw(st.integers(1, 9)), rows.shape[1])), rng.normal(size=1)
    bias = np.repeat(bias, len(weight))
    original = rows + draw(st.sampled_from([0.0, 0.1, 10.0])) * rng.normal(size=rows.shape)
    return rows, original @ weight.T + bias, weight, bias


def quiet(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return call(*args, **options)


def about_centres(f, rows, outputs):
    """X and Z of the papers: columns are samples, about the centres of the solution."""
    return (rows - f.center).T, (outputs - f.offset).T


def measured(f, rows, outputs):
    """||Y - Y_k||^2 from the layers a user would build."""
    found = [np.sum((outputs - f.offset) ** 2)]
    for k in range(1, f.max_rank + 1):
        layer = quiet(f.at_rank, k)
        found.append(np.sum((outputs - rows @ layer.down.T @ layer.up.T - layer.bias) ** 2))
    return np.array(found)


@settings(max_examples=150)
@given(two_runs(), RIDGES, st.booleans(), st.sampled_from(PLAIN_VARIANTS), st.integers(0, 2**32 - 1))
def test_the_minimiser_of_its_own_objective(runs, ridge, affine, variant, seed):
    """At every rank: on the dense oracle's curve, and not above random rivals; published at full rank alone."""
    rows, outputs, weight, bias = runs
    f = quiet(dalr, weight, bias, CrossMoments.of(rows, outputs), ridge=ridge, variant=variant, affine=affine)
    x, z = about_centres(f, rows, outputs)
    anchor = weight if variant is Variant.ANCHORED else None
    x, z = oracles.augmented(x, z, f.diagnostics.ridge, anchor)
    trace = max(np.sum(z**2), np.sum((weight @ x) ** 2), TINY)
    best = oracles.reduced_rank_curve(x, z, f.max_rank)
    own = np.array([np.sum((z - f.basis[:, :k] @ f.down[:k] @ x) ** 2) for k in range(f.max_rank + 1)])
    np.testing.assert_allclose(f.objective, own, atol=1e-8 * trace, rtol=0)
    if variant is Variant.PUBLISHED:
        assert (own >= best - 1e-8 * trace).all()
        return
    np.testing.assert_allclose(own, best, atol=1e-8 * trace, rtol=0)
    rng = np.random.default_rng(seed)
    for k in range(1, f.max_rank + 1):
        near = f.basis[:, :k] + 0.01 * rng.normal(size=(f.outputs, k))
        fitted = near @ np.linalg.lstsq(x.T, np.linalg.lstsq(near, z, rcond=None)[0].T, rcond=None)[0].T
        for rival in (fitted, rng.normal(size=(f.outputs, k)) @ rng.normal(size=(k, f.inputs))):
            assert own[k] <= np.sum((z - rival @ x) ** 2) + 1e-8 * trace


@settings(max_examples=60)
@given(two_runs(), st.sampled_from([1e-3, 0.3]), st.booleans())
def test_full_rank_is_the_ridge_regression_of_the_formula(runs, relative, affine):
    """U U'M = M = (Z X' + lam W)(S + lam I)^-1 for anchored, to 1e-8."""
    rows, outputs, weight, bias = runs
    if not rows.any():
        return
    f = dalr(weight, bias, CrossMoments.of(rows, outputs), ridge=Ridge.relative(relative), affine=affine)
    x, z = about_centres(f, rows, outputs)
    lam = f.diagnostics.ridge
    if lam <= 1e-12 * np.sum(rows**2):
        return
    formula = np.linalg.solve(x @ x.T + lam * np.eye(f.inputs), (z @ x.T + lam * weight).T).T
    product = f.basis @ f.down
    np.testing.assert_allclose(product, formula, atol=1e-8 * max(np.linalg.norm(formula), np.linalg.norm(weight)))


@given(two_runs(), RIDGES, st.booleans(), st.sampled_from(PLAIN_VARIANTS))
def test_where_the_runs_are_one_so_are_the_solutions(runs, ridge, affine, variant):
    rows, _, weight, bias = runs
    outputs = rows @ weight.T + bias
    options = {"ridge": ridge, "variant": variant, "affine": affine}
    one = quiet(dalr, weight, bias, Moments.of(rows), **options)
    two = quiet(dalr, weight, bias, CrossMoments.of(rows, outputs), **options)
    scale = max(one.objective[0], np.sum(outputs**2) * 1e-6, TINY)
    np.testing.assert_allclose(two.objective, one.objective, atol=1e-8 * scale)


@settings(max_examples=100)
@given(two_runs(), RIDGES, st.booleans(), st.sampled_from(PLAIN_VARIANTS), st.integers(0, 2**32 - 1))
def test_error_curves_are_the_errors_on_the_rows_of_both(runs, ridge, affine, variant, seed):
    """Training and held-out; and none is below its bound."""
    rows, outputs, weight, bias = runs
    f = quiet(dalr, weight, bias, CrossMoments.of(rows, outputs), ridge=ridge, variant=variant, affine=affine)
    held = make_rows("generic", 15, f.inputs, seed)
    for some, theirs in ((rows, outputs), (held, np.tanh(held @ weight.T))):
        exact, cross = measured(f, some, theirs), CrossMoments.of(some, theirs)
        scale = exact.max() + 1e-6 * np.sum(theirs**2) + np.sum((some @ f.down.T) ** 2) + TINY
        np.testing.assert_allclose(f.errors(cross), exact, atol=1e-9 * scale, rtol=0)
        assert (f.errors(cross) >= f.error_bound(cross) - 1e-8 * scale).all()
    assert (
        abs(f.diagnostics.error - measured(f, rows, outputs)[-1]) <= 1e-8 * scale + 1e-8 * measured(f, rows, outputs)[0]
    )


@pytest.mark.parametrize("method", ["svd", "published", "optimal", "anchored"])
def test_the_bias_is_the_best_there_is_at_every_rank(method):
    """Refitting a constant to what is left finds nothing: the residuals have mean zero."""
    rng = np.random.default_rng(0)
    rows, weight, bias = rng.normal(size=(60, 8)) + 3.0, rng.normal(size=(5, 8)), rng.normal(size=5)
    outputs = (rows + rng.normal(size=rows.shape)) @ weight.T + bias
    moments = CrossMoments.of(rows, outputs)
    if method == "svd":
        f = truncated_svd(weight, bias, moments, compensate_bias=True)
    else:
        f = dalr(weight, bias, moments, variant=method, affine=True)
    for k in range(1, 6):
        layer = quiet(f.at_rank, k)
        left = outputs - rows @ layer.down.T @ layer.up.T - layer.bias
        np.testing.assert_allclose(left.mean(axis=0), 0.0, atol=1e-12)


def test_what_the_data_leave_open_stays_as_it_was_in_the_weight():
    """Ridge 0 and dead inputs: anchored keeps their columns of W, also with two runs."""
    rng = np.random.default_rng(1)
    rows, weight = rng.normal(size=(50, 6)), rng.normal(size=(4, 6))
    rows[:, 2] = 0.0
    outputs = rows @ rng.normal(size=(6, 4))
    f = dalr(weight, None, CrossMoments.of(rows, outputs), ridge=Ridge.relative(0.0))
    product = f.basis @ f.down
    np.testing.assert_allclose(product[:, 2], weight[:, 2], atol=1e-12)
    least = np.linalg.lstsq(rows - rows.mean(axis=0), outputs - outputs.mean(axis=0), rcond=None)[0].T
    np.testing.assert_allclose(np.delete(product, 2, axis=1), np.delete(least, 2, axis=1), atol=1e-10)


def test_moments_of_one_run_are_refused_where_two_were_compared():
    rng = np.random.default_rng(2)
    rows, weight = rng.normal(size=(30, 6)), rng.normal(size=(4, 6))
    moments = CrossMoments.of(rows, rng.normal(size=(30, 4)))
    f = dalr(weight, None, moments)
    assert f.diagnostics.source == "cross"
    assert f.diagnostics.route == "cholesky"
    for call, message in (
        (lambda: dalr(weight[:3], None, moments), r"6 inputs and 4 outputs do not fit a weight of shape \(3, 6\)"),
        (lambda: f.errors(moments.inputs), "another run's outputs: errors need cross moments"),
        (lambda: f.errors(moments.outputs, side="outputs"), "another run's outputs: errors need cross moments"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            call()
