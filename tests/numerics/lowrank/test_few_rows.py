"""A layer that has its rows, fewer than features, is solved from them, and the same as from their moments."""

import warnings

import numpy as np
import pytest

from dalr_stream.engine.solve import solve, solve_again
from dalr_stream.errors import FewSamplesWarning, InvalidInputError, ParameterIncreaseWarning
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.solvers import dalr, dalr_sweep
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.statistics.grouped import GroupedMoments
from dalr_stream.numerics.statistics.moments import Moments

RNG = np.random.default_rng(3)
ROWS = np.maximum(RNG.normal(size=(30, 50)) + 1.0, 0.0)
WEIGHT, BIAS = RNG.normal(size=(12, 50)), RNG.normal(size=12)
INVERTING = [m for m in Method if m.dalr_options and not m.dalr_options.variant.shrinks_to_weight]
GRADIENTS = Moments.of(RNG.normal(size=(40, 12)))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        for kind in (FewSamplesWarning, ParameterIncreaseWarning):
            warnings.simplefilter("ignore", kind)
        yield


def layer(rows, *, kept, weight=WEIGHT):
    blocks = tuple(np.array_split(rows, 4))
    gradients = GRADIENTS if weight is WEIGHT else None
    return Layer("fc", weight, BIAS, Moments.of(rows, samples=10), rows=(blocks,) if kept else (), gradients=gradients)


@pytest.mark.parametrize("method", [m for m in Method if m.family is Family.LOW_RANK])
def test_every_method_gives_what_the_moments_give_and_the_route_is_recorded(method):
    ours, theirs = (solve(layer(ROWS, kept=kept), method, ridge=1e-3) for kept in (True, False))
    assert (ours.diagnostics.route == "dual") is (method in INVERTING)
    assert theirs.diagnostics.route != "dual"
    assert ours.diagnostics.samples == theirs.diagnostics.samples == 10
    for k in (1, 5, 12):
        one, two = ours.at_rank(k), theirs.at_rank(k)
        np.testing.assert_allclose(one.up @ one.down, two.up @ two.down, atol=1e-8)
        np.testing.assert_allclose(one.bias, two.bias, atol=1e-8)
    np.testing.assert_allclose(ours.errors(Moments.of(ROWS)), theirs.errors(Moments.of(ROWS)), atol=1e-7)


def test_as_many_rows_as_features_go_by_moments():
    rows = RNG.normal(size=(50, 50))
    assert dalr(layer(rows, kept=True), variant="optimal").diagnostics.route != "dual"


def test_a_sweep_and_other_rows_of_the_layer():
    with_rows = layer(ROWS, kept=True)
    for one in dalr_sweep(with_rows, ridges=[1e-4, 1e-2], variant="published"):
        assert one.diagnostics.route == "dual"
    again = solve_again(with_rows, Method.DALR_OPTIMAL, with_rows.known_inputs, 1e-3)
    assert again.diagnostics.route == "dual"
    others = solve_again(with_rows, Method.DALR_OPTIMAL, Moments.of(ROWS[:20]), 1e-3)
    assert others.diagnostics.route != "dual"  # the rows are not those of these moments
    assert others.diagnostics.count == 20


def test_each_group_has_rows_of_its_own():
    halves = np.array_split(ROWS, 2, axis=1)
    moments = GroupedMoments(tuple(map(Moments.of, halves)))
    rows = tuple([half[:9], half[9:20]] for half in halves)
    moments = GroupedMoments(tuple(Moments.of(half[:20]) for half in halves))
    grouped = Layer("conv", WEIGHT[:, :25], BIAS, moments, rows=rows)
    factors = dalr(grouped, variant="optimal")
    assert [part.diagnostics.route for part in factors.parts] == ["dual", "dual"]
    with pytest.raises(InvalidInputError, match="for each of its 2 groups, got 1"):
        Layer("conv", WEIGHT[:, :25], BIAS, moments, rows=rows[:1])


def test_rows_that_are_more_than_the_moments_say_are_refused():
    strange = Layer("fc", WEIGHT, BIAS, Moments.of(ROWS), rows=([ROWS, ROWS],))
    with pytest.raises(InvalidInputError, match="layer 'fc': rows: fewer than the 50 features were expected"):
        dalr(strange, variant="optimal")
