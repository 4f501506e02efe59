"""DALR in the metric of the loss: against dense twins, random rivals, and the plain variant that it contains."""

import warnings
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import KINDS, layers, make_rows

from dalr_stream.errors import InvalidInputError, ParameterIncreaseWarning
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows
from dalr_stream.numerics.lowrank.output_metric import LEAST_WEIGHT
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr, dalr_sweep
from dalr_stream.numerics.resampling.jackknife import jackknife_low_rank
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.grouped import GroupedMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.moments import Moments

pytestmark = [
    pytest.mark.filterwarnings("ignore::dalr_stream.errors.OutlierFeaturesWarning"),
    pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning"),
]
TINY = 1e-300
RIDGES = st.sampled_from([Ridge.relative(0.0), Ridge.relative(1e-3), Ridge.relative(0.5), Ridge.absolute(10.0)])


def drawn(seed=0, m=5, d=7, n=60):
    rng = np.random.default_rng(seed)
    rows, by_outputs = make_rows("generic", n, d, seed + 1), make_rows("generic", 3 * m, m, seed + 2)
    return SimpleNamespace(
        weight=rng.normal(size=(m, d)), bias=rng.normal(size=m), rows=rows, by_outputs=by_outputs,
        moments=Moments.of(rows), gradients=Moments.of(by_outputs),
    )  # fmt: skip


def solve(given, **options):
    return dalr(given.weight, given.bias, given.moments, variant="weighted", gradients=given.gradients, **options)


def product(f, k):
    return f.basis[:, :k] @ f.down[:k]


def ridged(given, f):
    """G and A with the ridges that the solution was solved with; A is unnormalised."""
    a = np.cov(given.rows.T, bias=True) * len(given.rows) + f.diagnostics.ridge * np.eye(f.inputs)
    return given.gradients.second_moment + f.diagnostics.gradient_ridge * np.eye(f.outputs), a


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (1, 4), (4, 1), (6, 6)])
def test_every_rank_is_the_formula(shape):
    given = drawn(m=shape[0], d=shape[1])
    f = solve(given)
    g, a = (np.atleast_2d(matrix) for matrix in ridged(given, f))
    for k in range(1, min(shape) + 1):
        np.testing.assert_allclose(product(f, k), oracles.weighted(given.weight, a, g, k), atol=1e-9)
        loss = oracles.weighted_loss(given.weight - product(f, k), a, g)
        assert loss == pytest.approx(f.objective[k], rel=1e-9, abs=1e-9 * f.objective[0])


def test_alternating_least_squares_from_anywhere_ends_at_the_same_loss():
    given = drawn(3, m=4, d=5)
    f = solve(given)
    g, a = ridged(given, f)
    for k in (1, 2, 3):
        start = np.random.default_rng(k).normal(size=(5, k))
        by_turns = oracles.weighted_by_turns(given.weight, a, g, start, rounds=3000)
        assert oracles.weighted_loss(given.weight - by_turns, a, g) == pytest.approx(f.objective[k], rel=1e-6)


@settings(max_examples=120)
@given(layers(), RIDGES, st.sampled_from([0.0, 1e-2, 1.0]), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_never_above_a_rival_and_falls_with_rank_whatever_the_rows_are_like(layer, ridge, relative, kind, seed):
    """Singular A, singular G, or both; and full rank is the weight itself."""
    rows, weight, bias = layer
    m, d = weight.shape
    gradients = Moments.of(make_rows(kind, 2 * m, m, seed))
    f = dalr(
        weight, bias, Moments.of(rows), ridge=ridge, variant="weighted", gradients=gradients, gradient_ridge=relative
    )
    x = rows - rows.mean(axis=0)
    a = x.T @ x + f.diagnostics.ridge * np.eye(d)
    g = gradients.second_moment + f.diagnostics.gradient_ridge * np.eye(m)
    g += LEAST_WEIGHT * np.linalg.norm(g, 2) * np.eye(m) if g.any() else np.eye(m)
    whole = max(oracles.weighted_loss(weight, a, g), TINY)
    rng = np.random.default_rng(seed)
    own = [oracles.weighted_loss(weight - product(f, k), a, g) for k in range(f.max_rank + 1)]
    assert (np.diff(own) <= 1e-8 * whole).all()
    assert (np.diff(f.objective) <= 1e-12 * max(f.objective[0], TINY)).all()
    np.testing.assert_allclose(product(f, f.max_rank), weight, atol=1e-9 * np.abs(weight).max() * d)
    for k in range(1, f.max_rank + 1):
        rivals = [rng.normal(size=(m, k)) @ rng.normal(size=(k, d))]
        for step in (1e-3, 1e-1):
            near = f.basis[:, :k] + step * rng.normal(size=(m, k))
            rivals.append(near @ (f.down[:k] + step * rng.normal(size=(k, d))))
        assert own[k] <= min(oracles.weighted_loss(weight - rival, a, g) for rival in rivals) + 1e-8 * whole


@settings(max_examples=60)
@given(layers(), RIDGES, st.sampled_from([0.0, 1.0, 100.0]))
def test_gradients_that_weigh_all_outputs_alike_give_the_plain_variant(layer, ridge, scale):
    """G = c I at ridge 0, and no gradients at all: the anchored solution, objective up to c."""
    rows, weight, bias = layer
    m = len(weight)
    gradients = Moments.of(np.sqrt(scale * m) * np.vstack([np.eye(m)]))
    plain = dalr(weight, bias, Moments.of(rows), ridge=ridge)
    options = {"ridge": ridge, "variant": "weighted", "gradients": gradients, "gradient_ridge": 0.0}
    f = dalr(weight, bias, Moments.of(rows), **options)
    trace = max(plain.objective[0], TINY)
    np.testing.assert_allclose(f.objective / (scale or 1.0), plain.objective, atol=1e-10 * trace)
    errors = f.errors(Moments.of(rows))
    np.testing.assert_allclose(errors, plain.errors(Moments.of(rows)), atol=1e-8 * trace)
    assert f.diagnostics.ridge == plain.diagnostics.ridge
    assert (scale == 0.0) == ("all gradients are zero: every output counts alike" in f.diagnostics.notes)


@pytest.mark.parametrize("scale", [10.0**power for power in range(-165, -140)])
@pytest.mark.parametrize("dead", [False, True])
def test_gradients_next_to_zero_give_finite_factors(scale, dead):
    """Their squares are no normal numbers: at the least there is of float64, whatever they are they count as none."""
    given = drawn()
    by_outputs = scale * given.by_outputs * np.where(np.arange(given.by_outputs.shape[1]) == 0, not dead, True)
    f = dalr(given.weight, given.bias, given.moments, variant="weighted", gradients=Moments.of(by_outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        pair = f.at_rank(min(given.weight.shape))
    np.testing.assert_allclose(pair.up @ pair.down, given.weight, rtol=1e-9)


@given(layers(kinds=("generic", "relu", "few_samples", "dead")), st.sampled_from([1e-4, 7.0, 1e6]))
def test_the_units_of_the_loss_do_not_matter(layer, scale):
    rows, weight, bias = layer
    by_outputs = make_rows("generic", 2 * len(weight), len(weight), 1)
    one, two = (
        dalr(weight, bias, Moments.of(rows), variant="weighted", gradients=Moments.of(times * by_outputs))
        for times in (1.0, scale)
    )
    np.testing.assert_allclose(two.objective, scale**2 * one.objective, rtol=1e-8, atol=1e-10 * two.objective[0])
    curve = one.errors(Moments.of(rows))
    np.testing.assert_allclose(two.errors(Moments.of(rows)), curve, atol=1e-6 * max(curve[0], TINY))


@settings(max_examples=60)
@given(layers(), st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_plain_errors_and_nats_are_those_of_the_pairs(layer, seed, kind):
    """On the rows that were seen and on others, of the weighted factors and of plain ones."""
    rows, weight, bias = layer
    by_outputs = make_rows(kind, 2 * len(weight), len(weight), seed)
    gradients = Moments.of(by_outputs)
    held = make_rows(kind, 15, rows.shape[1], seed)
    solutions = [
        dalr(weight, bias, Moments.of(rows), variant="weighted", gradients=gradients),
        dalr(weight, bias, Moments.of(rows)),
    ]
    for f in solutions:
        for some in (rows, held):
            moments = Moments.of(some).with_samples(max(1, len(some) // 3))
            y = some @ weight.T + bias
            errors, nats = [], []
            for k in range(f.max_rank + 1):
                gap = y - f.offset if k == 0 else y - some @ (pair := f.at_rank(k)).down.T @ pair.up.T - pair.bias
                errors.append(np.sum(gap**2))
                nats.append(np.mean((by_outputs @ gap.T) ** 2) * len(some) / moments.samples / 2)
            size = max(errors[0], 1e-18 * np.sum(y**2), TINY)
            np.testing.assert_allclose(f.errors(moments), errors, atol=1e-9 * size, rtol=0)
            most = np.linalg.norm(gradients.second_moment, 2) * size / moments.samples + TINY
            np.testing.assert_allclose(f.losses(moments, gradients), nats, atol=1e-9 * most, rtol=0)


def test_it_loses_less_of_the_loss_than_the_plain_variant_and_more_of_the_outputs():
    given = drawn(5, m=8, d=8)
    f, plain = solve(given, ridge=0.0, gradient_ridge=0.0), dalr(given.weight, given.bias, given.moments, ridge=0.0)
    nats = [one.losses(given.moments, given.gradients) for one in (f, plain)]
    errors = [one.errors(given.moments) for one in (f, plain)]
    assert (nats[0] <= nats[1] + 1e-9 * nats[0][0]).all()
    assert nats[0][2] < 0.9 * nats[1][2]
    assert (errors[0] >= errors[1] - 1e-9 * errors[0][0]).all()


def test_a_direction_that_no_gradient_is_seen_in_follows_from_the_others():
    """Of all the factors that lose nothing of the loss, those that keep the unseen outputs best: their regression."""
    given = drawn(6, m=4, d=6)
    seen = given.by_outputs.copy()
    seen[:, 3] = 0.0
    gradients = Moments.of(seen)
    f = dalr(
        given.weight, given.bias, given.moments, variant="weighted", gradients=gradients, ridge=0.0, gradient_ridge=0.0
    )
    assert any("gradients of rank 3 for 4 outputs" in note for note in f.diagnostics.notes)
    x = (given.rows - given.rows.mean(axis=0)).T
    for k in (1, 2, 3):
        hidden = f.down[:k] @ x
        best = np.linalg.lstsq(hidden.T, (given.weight[3] @ x).T, rcond=None)[0]
        np.testing.assert_allclose(f.basis[3, :k], best, atol=1e-4)
    losses = f.losses(given.moments, gradients)
    assert losses[3] <= 1e-9 * losses[0]
    np.testing.assert_allclose(product(f, 4), given.weight, atol=1e-10)


@settings(max_examples=40)
@given(layers(), RIDGES, st.integers(1, 13))
def test_the_first_ranks_alone_and_several_ridges_at_once_are_the_same(layer, ridge, most):
    rows, weight, bias = layer
    gradients = Moments.of(make_rows("generic", 2 * len(weight), len(weight), 3))
    options = {"variant": "weighted", "gradients": gradients}
    whole = dalr(weight, bias, Moments.of(rows), ridge=ridge, **options)
    part = dalr(weight, bias, Moments.of(rows), ridge=ridge, max_rank=most, **options)
    swept = dalr_sweep(weight, bias, Moments.of(rows), [ridge, Ridge.relative(1.0)], **options)[0]
    size = max(whole.objective[0], TINY)
    np.testing.assert_allclose(part.objective, whole.objective[: part.max_rank + 1], atol=1e-9 * size)
    np.testing.assert_allclose(swept.objective, whole.objective, atol=1e-9 * size)
    np.testing.assert_allclose(np.linalg.norm(whole.basis, axis=0), 1.0, atol=1e-12)


@pytest.mark.parametrize("gap", [0.0, 0.3])
def test_across_two_runs_it_is_the_minimum_in_that_metric(gap):
    """min ||G^1/2 (Z - C X)||^2 + lam ||G^1/2 (W - C)||^2: the plain problem of G^1/2 Z; one run where Z = W X."""
    given = drawn(7, m=4, d=6)
    rng = np.random.default_rng(0)
    z = (given.rows + gap * rng.normal(size=given.rows.shape)) @ given.weight.T + given.bias
    cross = CrossMoments.of(given.rows, z)
    f = dalr(given.weight, given.bias, cross, variant="weighted", gradients=given.gradients)
    g, _ = ridged(given, f)
    root = oracles.symmetric_root(g, 0.5)
    x, y = (given.rows - given.rows.mean(axis=0)).T, root @ (z - z.mean(axis=0)).T
    augmented = oracles.augmented(x, y, f.diagnostics.ridge, root @ given.weight)
    best = oracles.reduced_rank_curve(*augmented, f.max_rank)
    np.testing.assert_allclose(f.objective, best, rtol=1e-8, atol=1e-8 * best[0])
    for k in range(1, f.max_rank + 1):
        own = np.sum((augmented[1] - root @ product(f, k) @ augmented[0]) ** 2)
        assert own == pytest.approx(best[k], rel=1e-8, abs=1e-8 * best[0])
    gaps = [z - given.rows @ pair.down.T @ pair.up.T - pair.bias for pair in map(f.at_rank, (1, 2, 3))]
    measured = [np.sum(gap**2) for gap in gaps]
    np.testing.assert_allclose(f.errors(cross)[1:4], measured, rtol=1e-8)
    seen = [np.mean((given.by_outputs @ gap.T) ** 2) for gap in gaps]
    np.testing.assert_allclose(f.losses(cross, given.gradients)[1:4], np.array(seen) / 2, rtol=1e-8)
    if gap == 0.0:
        np.testing.assert_allclose(product(f, 2), product(solve(given), 2), atol=1e-9)


def test_a_layer_brings_its_gradients_and_each_group_its_own():
    parts = [drawn(seed, m=3, d=4) for seed in (10, 11)]
    layer = Layer(
        "conv",
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.bias for part in parts]),
        GroupedMoments(tuple(part.moments for part in parts)),
        gradients=GroupedMoments(tuple(part.gradients for part in parts)),
    )
    factors = dalr(layer, variant="weighted")
    for ours, part in zip(factors.parts, parts, strict=True):
        np.testing.assert_array_equal(product(ours, 2), product(solve(part), 2))
    alone = sum(solve(part).losses(part.moments, part.gradients) for part in parts)
    np.testing.assert_array_equal(factors.losses(layer.inputs, layer.gradients), alone)


def test_the_jackknife_turns_by_the_spans_of_the_basis():
    given = drawn(12, m=5, d=6, n=80)
    shards = [Moments.of(block) for block in np.split(given.rows, 4)]
    layer = Layer("fc", given.weight, given.bias, merge_all(iter(shards)), shards=shards, gradients=given.gradients)
    jackknife = jackknife_low_rank(layer, lambda one: dalr(one, variant="weighted"))
    assert jackknife.turn[0] == 0.0
    assert jackknife.turn[-1] <= 1e-7  # all of the outputs
    assert (jackknife.turn[1:5] > 1e-4).all()
    assert (jackknife.turn <= 1.0).all()


def test_what_is_missing_or_does_not_fit_is_named_with_the_layer():
    given = drawn()
    layer = Layer("fc6", given.weight, given.bias, given.moments)
    other = Moments.of(make_rows("generic", 9, 4, 0))
    cases = [
        (lambda: dalr(layer, variant="weighted"), r"layer 'fc6': variant 'weighted' needs .* watch\(..., gradients="),
        (lambda: dalr(given.weight, None, given.moments, variant="weighted"), r"variant 'weighted' needs .* or give"),
        (
            lambda: dalr(given.weight, None, given.moments, variant="weighted", gradients=other),
            r"gradients by 4 outputs do not fit a weight of shape \(5, 7\)",
        ),
        (
            lambda: dalr(given.weight, None, given.moments, variant="weighted", gradients=given.by_outputs),
            r"gradients must be ds.Moments, got a ndarray: of rows, ds.Moments.of\(rows\)",
        ),
        (
            lambda: dalr(given.weight, None, given.rows),
            r"moments must be ds.Moments, got a ndarray: of rows, ds.Moments.of\(rows\)",
        ),
        (
            lambda: dalr(given.weight, None, given.moments, variant="weighted", gradients=Moments.empty(5)),
            "gradients must come from at least one row",
        ),
        (lambda: dalr(layer, variant="weighted", affine=False), "variant 'weighted' is affine, got affine=False"),
        (lambda: dalr(layer, gradients=given.gradients), "layer 'fc6': has a bias and moments of its own"),
        (
            lambda: dalr(
                given.weight, None, given.gradients, variant="weighted", gradients=given.gradients, side="outputs"
            ),
            "moments of the outputs alone decide the anchored variant, not 'weighted'",
        ),
        (lambda: dalr_from_rows(given.weight, None, [given.rows], variant="weighted"), "is solved from moments"),
        (lambda: solve(given, gradient_ridge=-1.0), "ridge must be a finite number >= 0, got -1"),
        (lambda: solve(given).losses(given.moments, other), "gradients by 4 outputs do not fit"),
        (lambda: solve(given).errors(given.gradients, side="outputs"), "dalr_weighted_affine: its errors need"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_a_pair_in_single_precision_is_as_good():
    """Columns of length 1: gradients of 1e-8 or 1e8 bring nothing near the ends of a small type's range."""
    given = drawn(13, m=6, d=6)
    f = dalr(given.weight, given.bias, given.moments, variant="weighted", gradients=Moments.of(1e-8 * given.by_outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        pair = f.at_rank(6)
    low = pair.up.astype(np.float32) @ pair.down.astype(np.float32)
    np.testing.assert_allclose(low, given.weight, atol=1e-5)
