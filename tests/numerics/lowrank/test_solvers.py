"""Laws of the low-rank methods, against rows the solvers never see."""

import json
import warnings
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import KINDS, PLAIN_VARIANTS, layers, make_rows

from dalr_stream.errors import FewSamplesWarning, InvalidInputError, ParameterIncreaseWarning, RankError
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr, dalr_sweep
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.methods import Method, Variant
from dalr_stream.numerics.statistics.moments import Moments

pytestmark = pytest.mark.filterwarnings(
    "ignore::dalr_stream.errors.OutlierFeaturesWarning"  # features of many scales are drawn
)

TINY = 1e-300


def quiet_dalr(*args, **options):
    """`dalr`, which warns of few samples where hypothesis draws few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        return dalr(*args, **options)


def quiet_rank(factors, k):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return factors.at_rank(k)


def centred(rows, factors):
    """X of the papers, about the centre the solution uses."""
    return (rows - factors.center).T


def problem(rows, factors, variant):
    """Z*, X* whose plain squared error is the variant's objective (Eqs. 8-9)."""
    x = centred(rows, factors)
    lam = factors.diagnostics.ridge
    anchor = factors.weight if variant is Variant.ANCHORED else None
    return oracles.augmented(x, factors.weight @ x, lam, anchor)


def errors_on_rows(factors, rows, bias):
    bias = np.asarray(bias, float)
    x = rows.T
    zero = (np.zeros((factors.outputs, 1)), np.zeros((1, factors.inputs)), factors.offset)
    measured = [oracles.squared_error(factors.weight, bias, *zero, x)]
    for k in range(1, factors.max_rank + 1):
        layer = quiet_rank(factors, k)
        measured.append(oracles.squared_error(factors.weight, bias, layer.up, layer.down, layer.bias, x))
    return np.array(measured)


RIDGES = st.sampled_from([Ridge.relative(0.0), Ridge.relative(1e-3), Ridge.relative(0.5), Ridge.absolute(10.0)])
AFFINE = st.booleans()


@settings(max_examples=150)
@given(layers(), RIDGES, AFFINE, st.sampled_from(PLAIN_VARIANTS), st.integers(0, 2**32 - 1))
def test_never_above_any_rank_k_competitor(layer, ridge, affine, variant, seed):
    """In its own objective: the dense oracle, random rivals and perturbations; published at ridge 0."""
    rows, weight, bias = layer
    if variant is Variant.PUBLISHED:
        ridge = Ridge.relative(0.0)
    f = quiet_dalr(weight, bias, Moments.of(rows), ridge=ridge, variant=variant, affine=affine)
    x, z = problem(rows, f, variant)
    trace = max(np.sum(z**2), TINY)
    best = oracles.reduced_rank_curve(x, z, f.max_rank)
    rng = np.random.default_rng(seed)
    np.testing.assert_allclose(f.objective, best, atol=1e-8 * trace, rtol=0)
    for k in range(1, f.max_rank + 1):
        c = f.basis[:, :k] @ f.down[:k]
        own = np.sum((z - c @ x) ** 2)
        assert abs(own - f.objective[k]) <= 1e-8 * trace
        rivals = [rng.normal(size=(f.outputs, k)) @ rng.normal(size=(k, f.inputs))]
        for step in (1e-4, 1e-1):
            up = f.basis[:, :k] + step * rng.normal(size=(f.outputs, k))
            rivals.append(up @ (f.down[:k] + step * rng.normal(size=(k, f.inputs))))
        rivals += [
            up @ np.linalg.lstsq(x.T, (up.T @ z).T, rcond=None)[0].T for up in [np.linalg.qr(rivals[0])[0][:, :k]]
        ]
        assert own <= min(np.sum((z - rival @ x) ** 2) for rival in rivals) + 1e-8 * trace


@settings(max_examples=60)
@given(layers(), st.sampled_from([0.0, 1e-3, 1.0]), AFFINE)
def test_published_is_what_the_paper_prints(layer, relative, affine):
    """The same fitted values: U up to signs and ties, M by an explicit inverse."""
    rows, weight, bias = layer
    f = quiet_dalr(weight, bias, Moments.of(rows), ridge=Ridge.relative(relative), variant="published", affine=affine)
    x = centred(rows, f)
    u, m = oracles.published(weight, x, f.diagnostics.ridge)
    trace = max(np.sum((weight @ x) ** 2), TINY)
    s = np.linalg.svd(weight @ x, compute_uv=False) if x.size else np.zeros(1)
    assert np.linalg.norm((f.basis @ f.down - m) @ x) ** 2 <= 1e-10 * trace
    for k in range(1, min(f.max_rank, len(s))):
        if s[k - 1] - s[k] > 1e-3 * s[0]:
            gap = f.basis[:, :k] @ f.down[:k] - u[:, :k] @ u[:, :k].T @ m
            assert np.linalg.norm(gap @ x) ** 2 <= 1e-8 * trace


@given(layers(), RIDGES, AFFINE)
def test_optimal_is_not_above_published(layer, ridge, affine):
    rows, weight, bias = layer
    moments = Moments.of(rows)
    optimal = quiet_dalr(weight, bias, moments, ridge=ridge, variant="optimal", affine=affine)
    published = quiet_dalr(weight, bias, moments, ridge=ridge, variant="published", affine=affine)
    assert (optimal.objective <= published.objective + 1e-10 * max(published.objective[0], TINY)).all()


@given(layers(), RIDGES, AFFINE)
def test_anchored_gives_back_the_weight_at_full_rank(layer, ridge, affine):
    rows, weight, bias = layer
    f = dalr(weight, bias, Moments.of(rows), ridge=ridge, affine=affine)
    full = quiet_rank(f, f.max_rank)
    np.testing.assert_allclose(full.up @ full.down, weight, atol=1e-12 * np.abs(weight).max() * f.inputs)
    held = make_rows("generic", 20, f.inputs, 5)
    assert f.errors(Moments.of(held))[-1] <= 1e-20 * np.sum((held @ weight.T) ** 2)


@given(layers(kinds=("generic", "relu", "few_samples", "one_sample")), AFFINE)
def test_anchored_tends_to_truncated_svd(layer, affine):
    rows, weight, bias = layer
    f = dalr(weight, bias, Moments.of(rows), ridge=Ridge.absolute(1e14), affine=affine)
    svd = truncated_svd(weight, bias)
    s2 = np.linalg.svd(weight, compute_uv=False) ** 2
    for k in range(1, f.max_rank + 1):
        c = f.basis[:, :k] @ f.down[:k]
        assert np.sum((weight - c) ** 2) <= svd.objective[k] + 1e-8 * s2.sum()


def test_one_row_affine_is_truncated_svd_when_anchored_and_the_mean_otherwise():
    rng = np.random.default_rng(0)
    weight, bias, row = rng.normal(size=(9, 5)), rng.normal(size=9), rng.normal(size=(1, 5))
    moments = Moments.of(row)
    f = dalr(weight, bias, moments)
    svd = truncated_svd(weight, bias)
    for k in range(1, 6):
        np.testing.assert_allclose(
            quiet_rank(f, k).up @ quiet_rank(f, k).down, quiet_rank(svd, k).up @ quiet_rank(svd, k).down, atol=1e-12
        )
    assert any("one row" in note for note in f.diagnostics.notes)
    optimal = quiet_dalr(weight, bias, moments, variant="optimal")
    np.testing.assert_allclose(optimal.down, 0.0, atol=1e-15)
    np.testing.assert_allclose(quiet_rank(optimal, 1).bias, weight @ row[0] + bias)


@pytest.mark.parametrize("variant", PLAIN_VARIANTS)
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_white_inputs_give_truncated_svd(variant, shape):
    """X X' = c I: SVD of W, times c / (c + lam) unless anchored."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=shape)
    d, c = shape[1], 3.0
    orthogonal = np.linalg.qr(rng.normal(size=(25, d)))[0]
    f = dalr(
        weight, None, Moments.of(np.sqrt(c) * orthogonal), ridge=Ridge.absolute(0.7), variant=variant, affine=False
    )
    svd = truncated_svd(weight, None)
    shrink = 1.0 if variant is Variant.ANCHORED else c / (c + 0.7)
    for k in range(1, f.max_rank + 1):
        expected = shrink * svd.basis[:, :k] @ svd.down[:k]
        np.testing.assert_allclose(f.basis[:, :k] @ f.down[:k], expected, atol=1e-10)


@given(layers(), st.sampled_from(PLAIN_VARIANTS))
def test_affine_is_never_above_svd_with_bias_compensation(layer, variant):
    """Plain training error at ridge 0."""
    rows, weight, bias = layer
    moments = Moments.of(rows)
    affine = quiet_dalr(weight, bias, moments, ridge=Ridge.relative(0.0), variant=variant, affine=True).errors(moments)
    rival = truncated_svd(weight, bias, moments, compensate_bias=True).errors(moments)
    assert (affine <= rival + 1e-10 * max(rival[0], TINY)).all()


def all_methods(weight, bias, moments, ridge):
    yield truncated_svd(weight, bias)
    yield truncated_svd(weight, bias, moments, compensate_bias=True)
    yield quiet_dalr(weight, bias, moments, ridge=ridge, variant="published", compensate_bias=True)
    for variant in PLAIN_VARIANTS:
        for affine in (False, True):
            yield quiet_dalr(weight, bias, moments, ridge=ridge, variant=variant, affine=affine)


@settings(max_examples=100)
@given(layers(), RIDGES, st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_error_curves_are_the_errors_on_the_rows(layer, ridge, seed, kind):
    """Training and held-out, every method, every rank: to 1e-10 of the trace."""
    rows, weight, bias = layer
    held = make_rows(kind, 15, rows.shape[1], seed)
    for f in all_methods(weight, bias, Moments.of(rows), ridge):
        for some in (rows, held):
            measured = errors_on_rows(f, some, bias)
            y = weight @ some.T + bias[:, None]  # measuring rounds at EPSILON |y|
            trace = np.sum((weight @ centred(some, f)) ** 2) + 1e-18 * np.sum(y**2)
            np.testing.assert_allclose(f.errors(Moments.of(some)), measured, atol=1e-10 * trace, rtol=0)


@given(layers(), AFFINE)
def test_training_error_falls_with_rank_when_anchored_at_ridge_zero(layer, affine):
    rows, weight, bias = layer
    moments = Moments.of(rows)
    curve = dalr(weight, bias, moments, ridge=Ridge.relative(0.0), affine=affine).errors(moments)
    assert (np.diff(curve) <= 1e-13 * max(curve[0], TINY)).all()


def test_small_errors_keep_their_digits():
    """A decaying spectrum: near 1e-14 of the trace prefix sums are wrong in the first digits, tail sums are not."""
    rng = np.random.default_rng(2)
    u, v = np.linalg.qr(rng.normal(size=(20, 20)))[0], np.linalg.qr(rng.normal(size=(20, 20)))[0]
    weight = u * 10.0 ** -np.linspace(0, 9, 20) @ v
    rows = rng.normal(size=(200, 20))
    f = truncated_svd(weight, None)
    measured = errors_on_rows(f, rows, np.zeros(20))
    k = int(np.searchsorted(-measured, -1e-14 * measured[0]))
    np.testing.assert_allclose(f.errors(Moments.of(rows))[1:k], measured[1:k], rtol=1e-3)
    assert k > 12


@given(layers(), st.sampled_from(PLAIN_VARIANTS))
def test_bases_are_orthonormal_and_repeatable(layer, variant):
    rows, weight, bias = layer
    one, two = (quiet_dalr(weight, bias, Moments.of(rows), variant=variant) for _ in range(2))
    np.testing.assert_allclose(one.basis.T @ one.basis, np.eye(one.max_rank), atol=1e-12)
    assert (one.basis == two.basis).all()
    assert (one.down == two.down).all()


def test_bias_compensation_is_equation_4():
    rng = np.random.default_rng(3)
    weight, bias, rows = rng.normal(size=(6, 8)), rng.normal(size=6), rng.normal(size=(30, 8)) + 2.0
    moments = Moments.of(rows)
    for f, method in (
        (truncated_svd(weight, bias, moments, compensate_bias=True), Method.SVD_BC),
        (dalr(weight, bias, moments, variant="published", compensate_bias=True), Method.DALR_PUBLISHED_BC),
    ):
        layer = f.at_rank(2)
        np.testing.assert_allclose(layer.bias, bias + (weight - layer.up @ layer.down) @ rows.mean(axis=0))
        assert f.method is method


@pytest.mark.parametrize("variant", PLAIN_VARIANTS)
@pytest.mark.parametrize("affine", [None, False, True])
def test_a_solution_is_named_after_its_variant_and_is_affine_unless_published(variant, affine):
    rng = np.random.default_rng(4)
    f = dalr(rng.normal(size=(3, 4)), None, Moments.of(rng.normal(size=(9, 4))), variant=variant.value, affine=affine)
    is_affine = variant is not Variant.PUBLISHED if affine is None else affine
    assert f.method.value == f"dalr_{variant.value}" + ("_affine" if is_affine else "")
    assert f.center.any() == is_affine


def test_ranks_outside_the_solution_are_refused_and_costly_ones_warned_of():
    rng = np.random.default_rng(5)
    f = dalr(rng.normal(size=(8, 12)).astype(np.float32), None, Moments.of(rng.normal(size=(40, 12))))
    assert f.break_even_rank == 96 // 20
    assert (f.outputs, f.inputs, f.max_rank) == (8, 12, 8)
    layer = f.at_rank(np.int64(3))
    assert (layer.rank, layer.parameters) == (3, 60)
    assert (layer.down.shape, layer.up.shape, layer.bias.shape) == ((3, 12), (8, 3), (8,))
    assert layer.down.dtype == layer.up.dtype == layer.bias.dtype == np.float64
    for wrong in (0, 9, 5000, -1, 2.0, True):
        with pytest.raises(RankError, match=rf"layer 'fc6': rank must lie in 1\.\.8, got {wrong}"):
            f.at_rank(wrong, layer="fc6")
    with pytest.warns(ParameterIncreaseWarning, match="layer 'fc6': rank 5 .* up to rank 4"):
        f.at_rank(5, layer="fc6")


def test_diagnostics_survive_json():
    rng = np.random.default_rng(6)
    weight = rng.normal(size=(4, 9))
    with pytest.warns(FewSamplesWarning, match="5 rows for 9 features"):
        f = dalr(weight, None, Moments.of(rng.normal(size=(5, 9))), variant="optimal", ridge=Ridge.absolute(0.0))
    d = f.diagnostics
    assert (d.route, d.numerical_rank, d.count, d.features) == ("eigen", 4, 5, 9)
    assert d.notes
    assert Diagnostics(**json.loads(json.dumps(asdict(d)))) == d


def test_bad_input_is_refused_in_words():
    rng = np.random.default_rng(7)
    weight, moments = rng.normal(size=(4, 6)), Moments.of(rng.normal(size=(20, 6)))
    other = Moments.of(rng.normal(size=(20, 5)))
    broken = weight.copy()
    broken[0, 0] = np.nan
    cases = [
        (lambda: dalr(weight, None, other), r"5 features do not fit a weight of shape \(4, 6\)"),
        (lambda: dalr(weight, np.zeros(3), moments), r"bias must have 4 entries, one per output, got shape \(3,\)"),
        (lambda: dalr(weight[0], None, moments), "must be a matrix"),
        (lambda: dalr(broken, None, moments), "weight must be finite"),
        (lambda: truncated_svd(broken, None), "weight must be finite"),
        (lambda: dalr(weight, None, Moments.empty(6)), "at least one row"),
        (
            lambda: dalr(weight, None, moments, variant="best"),
            "'published', 'optimal', 'anchored', 'weighted', got 'best'",
        ),
        (lambda: dalr(weight, None, moments, compensate_bias=True), "compensate_bias goes with"),
        (lambda: truncated_svd(weight, None, compensate_bias=True), "moments of the layer's inputs are needed"),
        (lambda: Ridge.relative(-1e-3), "ridge must be a finite number >= 0"),
        (lambda: Ridge.absolute(np.nan), "ridge must be a finite number >= 0"),
        (lambda: dalr(weight, None, moments, ridge="1e-3"), "must be a number, which is relative, or a Ridge"),
        (lambda: dalr(weight, None, moments, ridge=True), "must be a number, which is relative, or a Ridge, got True"),
        (lambda: dalr(weight, None, moments, ridge=-1e-3), "ridge must be a finite number >= 0, got -0.001"),
        (
            lambda: dalr_sweep(weight, None, moments, [None]),
            "must be a number, which is relative, or a Ridge, got None",
        ),
        (lambda: dalr(weight, None), "moments of the layer's inputs are needed, got none: give them beside"),
        (
            lambda: dalr(weight, None, {"0": moments, "2": other}),
            r"a mapping: say moments\['0'\] or moments\['2'\]",
        ),
        (lambda: dalr(SimpleNamespace(requires_grad=True), None, moments), r"parameter .*: weights_of\(model, name\)"),
        (lambda: truncated_svd(weight, None).errors(other), r"5 features do not fit a weight of shape \(4, 6\)"),
        (lambda: truncated_svd(weight, None).errors(Moments.empty(6)), "at least one row"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_the_callers_weight_stays_his_own():
    weight = np.random.default_rng(8).normal(size=(3, 4))
    f = truncated_svd(weight, None)
    weight[0, 0] = 99.0
    assert f.weight[0, 0] != 99.0
    assert not f.weight.flags.writeable
