"""Solutions from less: from the outputs' moments alone, of the first ranks alone, and of many ridges at once."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import KINDS, PLAIN_VARIANTS, layers, make_rows

from dalr_stream.errors import FewSamplesWarning, InvalidInputError, ParameterIncreaseWarning, RankError
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr, dalr_sweep
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments

pytestmark = pytest.mark.filterwarnings(
    "ignore::dalr_stream.errors.OutlierFeaturesWarning"  # features of many scales are drawn
)

TINY = 1e-300
AFFINE = st.booleans()


def quiet(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return call(*args, **options)


def product(f, k):
    return f.basis[:, :k] @ f.down[:k]


# --- from the outputs alone ---------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(layers(), st.sampled_from([0.0, 1e-3, 0.5]), AFFINE, st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_outputs_alone_give_what_the_inputs_give(layer, relative, affine, seed, kind):
    """The same objective at the same lambda, and errors, training and held-out, equal to those on the rows."""
    rows, weight, bias = layer
    y = rows @ weight.T + bias
    s = np.cov(rows.T, bias=True).reshape(weight.shape[1], -1) if affine else rows.T @ rows / len(rows)
    ridge = Ridge.absolute(relative * np.trace(s) * len(rows) / len(s))
    known = dalr(weight, bias, Moments.of(rows), ridge=ridge, affine=affine)
    alone = dalr(weight, bias, Moments.of(y), ridge=ridge, affine=affine, side="outputs")
    scale = max(known.objective[0], 1e-9 * np.sum(y**2), TINY)
    np.testing.assert_allclose(alone.objective, known.objective, atol=1e-9 * scale, rtol=0)
    held = make_rows(kind, 15, rows.shape[1], seed)
    for some in (rows, held):
        theirs = some @ weight.T + bias
        exact = [np.sum((theirs - alone.offset) ** 2)]
        for k in range(1, alone.max_rank + 1):
            pair = quiet(alone.at_rank, k)
            exact.append(np.sum((theirs - some @ pair.down.T @ pair.up.T - pair.bias) ** 2))
        size = max(exact[0], np.sum(theirs**2) + len(theirs) * np.sum(alone.offset**2), TINY)
        np.testing.assert_allclose(alone.errors(Moments.of(theirs), side="outputs"), exact, atol=1e-9 * size, rtol=0)
    assert alone.diagnostics.source == "outputs"
    assert alone.diagnostics.route == "outputs"


def test_a_relative_ridge_from_outputs_is_the_mean_of_the_inputs_moments_as_the_weight_weighs_them():
    rng = np.random.default_rng(0)
    white = np.linalg.qr(rng.normal(size=(40, 8)))[0] * 3.0
    weight = rng.normal(size=(5, 8))
    by_outputs = dalr(weight, None, Moments.of(white @ weight.T), affine=False, side="outputs")
    by_inputs = dalr(weight, None, Moments.of(white), affine=False)
    assert by_outputs.diagnostics.ridge == pytest.approx(by_inputs.diagnostics.ridge, rel=1e-12)


def test_errors_of_plain_svd_from_outputs():
    rng = np.random.default_rng(1)
    rows, weight, bias = rng.normal(size=(40, 8)) + 1.0, rng.normal(size=(5, 8)), rng.normal(size=5)
    y, moments = Moments.of(rows @ weight.T + bias), Moments.of(rows)
    for options in ({}, {"compensate_bias": True}):
        f = truncated_svd(weight, bias, moments, **options)
        np.testing.assert_allclose(f.errors(y, side="outputs"), f.errors(moments), atol=1e-11 * f.errors(moments)[0])
        np.testing.assert_allclose(f.error_bound(y, side="outputs"), f.error_bound(moments), atol=1e-9)
    compensated = truncated_svd(weight, bias, y, compensate_bias=True, side="outputs")
    np.testing.assert_allclose(compensated.at_rank(2).bias, f.at_rank(2).bias, atol=1e-12)


def test_outputs_decide_the_anchored_variant_only():
    rng = np.random.default_rng(2)
    rows, weight = rng.normal(size=(40, 6)), rng.normal(size=(4, 6))
    y = Moments.of(rows @ weight.T)
    with pytest.raises(InvalidInputError, match=r"decide the anchored variant, not 'optimal'.*dalr_from_rows"):
        dalr(weight, None, y, variant="optimal", side="outputs")
    with pytest.raises(InvalidInputError, match="4 features do not fit a weight"):
        dalr(weight, None, y)
    with pytest.raises(InvalidInputError, match=r"side must be one of 'inputs', 'outputs', .* got 'out'"):
        dalr(weight, None, y, side="out")
    optimal = dalr(weight, None, Moments.of(rows), variant="optimal")
    with pytest.raises(
        InvalidInputError, match="dalr_optimal_affine: its errors need the moments of the layer's inputs"
    ):
        optimal.errors(y, side="outputs")


# --- the first ranks alone ------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(layers(), st.sampled_from([0.0, 1e-3]), AFFINE, st.sampled_from(PLAIN_VARIANTS), st.integers(1, 14), AFFINE)
def test_the_first_ranks_alone_are_those_of_all(layer, relative, affine, variant, most, crossed):
    """Same objectives and errors at ranks 0..K; the factors are K wide."""
    rows, weight, bias = layer
    moments = CrossMoments.of(rows, np.tanh(rows @ weight.T)) if crossed else Moments.of(rows)
    options = {"ridge": Ridge.relative(relative), "variant": variant, "affine": affine}
    whole = quiet(dalr, weight, bias, moments, **options)
    part = quiet(dalr, weight, bias, moments, max_rank=most, **options)
    k = min(most, whole.max_rank)
    assert (part.max_rank, part.basis.shape, part.down.shape) == (k, (len(weight), k), (k, rows.shape[1]))
    scale = max(np.abs(whole.objective).max(), TINY)
    np.testing.assert_allclose(part.objective, whole.objective[: k + 1], atol=1e-9 * scale, rtol=0)
    np.testing.assert_allclose(part.basis.T @ part.basis, np.eye(k), atol=1e-11)
    bound = part.error_bound(moments)
    assert bound.shape == (k + 1,)
    curve = part.errors(moments)
    assert (curve >= bound - 1e-8 * max(curve.max(), scale)).all()
    assert abs(part.diagnostics.error - curve[-1]) <= 1e-8 * max(curve.max(), scale)
    if part.diagnostics.error_bound is not None:
        assert part.diagnostics.error_bound <= bound[-1] + 1e-8 * max(curve.max(), scale)


def test_a_large_partial_solve_takes_the_partial_driver_and_agrees():
    rng = np.random.default_rng(3)
    rows, weight = rng.normal(size=(300, 80)) * np.linspace(1, 5, 80), rng.normal(size=(60, 80))
    for variant in PLAIN_VARIANTS:
        whole = dalr(weight, None, Moments.of(rows), variant=variant)
        part = dalr(weight, None, Moments.of(rows), variant=variant, max_rank=12)
        np.testing.assert_allclose(product(part, 12), product(whole, 12), atol=1e-10)
        assert part.at_rank(7).parameters == 7 * 140
        with pytest.raises(RankError, match=r"rank must lie in 1\.\.12, got 13"):
            part.at_rank(13)


@pytest.mark.parametrize("wrong", [0, -3, 2.0, True])
def test_a_largest_rank_below_one_is_refused(wrong):
    with pytest.raises(RankError, match="max_rank must be a whole number >= 1"):
        dalr(np.eye(3), None, Moments.of(np.eye(3)), max_rank=wrong)


# --- many ridges --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(layers(), AFFINE, st.sampled_from(PLAIN_VARIANTS), AFFINE)
def test_a_sweep_equals_separate_solves(layer, affine, variant, crossed):
    rows, weight, bias = layer
    moments = CrossMoments.of(rows, np.tanh(rows @ weight.T)) if crossed else Moments.of(rows)
    ridges = [Ridge.relative(r) for r in (1e-6, 1e-3, 0.1)] + [Ridge.absolute(2.0)]
    swept = quiet(dalr_sweep, weight, bias, moments, ridges, variant=variant, affine=affine)
    for ridge, f in zip(ridges, swept, strict=True):
        alone = quiet(dalr, weight, bias, moments, ridge=ridge, variant=variant, affine=affine)
        scale = max(np.abs(alone.objective).max(), TINY)
        assert f.diagnostics.ridge == alone.diagnostics.ridge
        np.testing.assert_allclose(f.objective, alone.objective, atol=1e-8 * scale, rtol=0)
        np.testing.assert_allclose(f.errors(moments), alone.errors(moments), atol=1e-7 * scale, rtol=0)


def test_a_sweep_of_no_ridges_is_refused():
    with pytest.raises(InvalidInputError, match="at least one ridge"):
        dalr_sweep(np.eye(3), None, Moments.of(np.eye(3)), [])


# --- balanced factors and certificates ------------------------------------------------------------------------------


@given(layers(), st.integers(1, 12))
def test_balanced_factors_share_their_scale(layer, k):
    rows, weight, bias = layer
    f = dalr(1e4 * weight, bias, Moments.of(rows))
    k = min(k, f.max_rank)
    plain, even = quiet(f.at_rank, k), quiet(f.at_rank, k, balanced=True)
    size = np.abs(plain.up @ plain.down).max()
    np.testing.assert_allclose(even.up @ even.down, plain.up @ plain.down, atol=1e-13 * size * k)
    assert (even.bias == plain.bias).all()
    up, down = (np.linalg.norm(part, axis=1).max() for part in (even.up, even.down))
    assert up == pytest.approx(down, rel=1e-12)


def test_diagnostics_certify_route_rank_condition_and_error():
    rng = np.random.default_rng(4)
    rows, weight = rng.normal(size=(30, 6)), rng.normal(size=(4, 6))
    rows[:, 1] = rows[:, 0]
    d = dalr(weight, None, Moments.of(rows), variant="optimal", ridge=Ridge.absolute(0.0)).diagnostics
    assert (d.route, d.numerical_rank, d.rows_per_feature, d.source) == ("eigen", 5, 5.0, "inputs")
    assert "singular" in d.reason
    assert abs(d.psd_margin) < 1e-15
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[1:]
    assert d.condition == pytest.approx(values[-1] / values[0])
    assert d.error == pytest.approx(0.0, abs=1e-10)
    d = dalr(weight, None, Moments.of(rows), variant="optimal").diagnostics
    assert (d.route, d.numerical_rank) == ("cholesky", None)
    assert abs(d.psd_margin) < 1e-12
    assert 0.0 == d.error_bound < d.error


def test_moments_that_are_no_sum_of_squares_are_named():
    rng = np.random.default_rng(5)
    rows, weight = rng.normal(size=(40, 6)), rng.normal(size=(4, 6))
    huge = 1e9 * rng.normal(size=(4, 6))
    damaged = (Moments.of(rows) + Moments.of(huge)) - Moments.of(huge)
    assert damaged.psd_margin < -1e-6
    f = dalr(weight, None, damaged, variant="optimal", ridge=Ridge.relative(100.0))
    assert any("not positive semi-definite" in note for note in f.diagnostics.notes)
    assert damaged.psd_margin <= f.diagnostics.psd_margin <= 0.5 * damaged.psd_margin  # an estimate from above
    clean = dalr(weight, None, Moments.of(rows), variant="optimal")
    assert clean.diagnostics.notes == ()
