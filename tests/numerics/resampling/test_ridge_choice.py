"""The chosen ridge is the best of a brute-force sweep, on the rows it says it was judged by."""

import numpy as np
import pytest

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.resampling.ridge_choice import GRID, choose_ridge
from dalr_stream.numerics.statistics.merging import merge_all

M, D, N = 8, 30, 10


def problem(seed=0, noise=1.0):
    """Few samples of low rank in noise, so that the ridge matters."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(M, D)), rng.normal(size=M)
    mix = rng.normal(size=(5, D))

    def rows(n):
        return rng.normal(size=(n, 5)) @ mix + noise * rng.normal(size=(n, D)) + 2.0

    return weight, bias, rows


def solver(weight, bias, variant):
    return lambda moments, ridge: ds.dalr(weight, bias, moments, ridge=ridge, variant=variant)


def norm_errors(factors, rows, weight, bias):
    """||Y - Yhat|| and ||Y - b|| squared, from the rows, at ranks 1..K."""
    z = rows @ weight.T
    layers = [factors.at_rank(k) for k in range(1, factors.break_even_rank + 1)]
    return np.array([np.sum((z + bias - (rows @ one.down.T @ one.up.T + one.bias)) ** 2) for one in layers]), np.sum(
        z**2
    )


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.FewSamplesWarning")
@pytest.mark.parametrize("variant", ["anchored", "optimal"])
@pytest.mark.parametrize("rank", [None, 3])
def test_by_held_out_rows_it_is_the_best_of_a_sweep(variant, rank):
    weight, bias, rows = problem()
    training, apart = ds.Moments.of(rows(N)), rows(400)
    solve = solver(weight, bias, variant)
    found = choose_ridge(solve, training, heldout=ds.Moments.of(apart), rank=rank)
    twin = []
    for value in GRID:
        squares, energy = norm_errors(solve(training, Ridge.relative(value)), apart, weight, bias)
        curve = np.sqrt(squares / energy)
        twin.append(curve.mean() if rank is None else curve[rank - 1])
    assert np.allclose(found.errors, twin)
    assert found.ridge == Ridge.relative(GRID[int(np.argmin(twin))])
    assert "held-out rows" in found.note
    assert ("at rank 3" if rank else "averaged over the ranks to break-even") in found.note


def test_by_shards_it_is_the_best_of_a_sweep_over_the_shards_left_out():
    weight, bias, rows = problem(1)
    data, g = rows(16), 4
    parts = np.array_split(data, g)
    shards = [ds.Moments.of(part) for part in parts]
    solve = solver(weight, bias, "anchored")
    grid = (1e-4, 1e-2, 1e-1, 1.0)
    found = choose_ridge(solve, shards=[shards[0], ds.Moments.empty(D), *shards[1:]], grid=grid)
    twin = []
    for value in grid:
        pooled = [
            norm_errors(
                solve(merge_all([one for one in shards if one is not shards[out]]), Ridge.relative(value)),
                parts[out], weight, bias,
            )
            for out in range(g)
        ]  # fmt: skip
        twin.append(np.sqrt(sum(squares for squares, _ in pooled) / sum(energy for _, energy in pooled)).mean())
    assert np.allclose(found.errors, twin)
    assert found.ridge.value == grid[int(np.argmin(twin))]
    assert found.ridge.value > 1e-4  # too few samples for hardly any ridge


def test_it_does_better_than_the_extremes_on_rows_that_chose_nothing():
    weight, bias, rows = problem(2)
    training, solve = ds.Moments.of(rows(N)), solver(weight, bias, "anchored")
    found = choose_ridge(solve, training, heldout=ds.Moments.of(rows(300)))
    fresh = ds.Moments.of(rows(2000))

    def error(value):
        factors = solve(training, Ridge.relative(value))
        return np.sqrt(factors.errors(fresh)[1 : factors.break_even_rank + 1]).mean()

    assert error(found.ridge.value) < min(error(GRID[0]), error(GRID[-1]))


def test_equal_errors_give_the_largest_ridge_and_an_edge_is_named():
    weight, bias, rows = problem()
    training = ds.Moments.of(rows(N))
    found = choose_ridge(
        lambda moments, _: ds.truncated_svd(weight, bias, moments), training, heldout=training, grid=[1e-3, 1.0, 1e-2]
    )
    assert found.grid == (1e-3, 1e-2, 1.0)
    assert found.ridge.value == 1.0
    assert "relative ridge 1, the largest tried, chosen among 3 from 0.001 to 1" in found.note


def test_what_cannot_be_judged_is_refused():
    weight, bias, rows = problem()
    moments, solve = ds.Moments.of(rows(N)), solver(weight, bias, "anchored")
    for given in ({}, {"training": moments}, {"heldout": moments}, {"training": moments, "shards": [moments, moments]}):
        with pytest.raises(InvalidInputError, match="judge by `training` with `heldout`, or by `shards` alone"):
            choose_ridge(solve, **given)
    with pytest.raises(InvalidInputError, match="the grid holds no ridge"):
        choose_ridge(solve, moments, heldout=moments, grid=[])
    with pytest.raises(InvalidInputError, match=r"rank must lie in 1\.\.8, got 9"):
        choose_ridge(solve, moments, heldout=moments, rank=9)


def test_a_weighted_solution_is_judged_by_what_the_loss_feels():
    weight, bias, rows = problem(3)
    training, apart = ds.Moments.of(rows(N)), ds.Moments.of(rows(400))
    seen = np.random.default_rng(4).normal(size=(40, M)) * np.geomspace(1.0, 1e-3, M)
    gradients = ds.Moments.of(seen)
    layer = ds.Layer("fc", weight, bias, training, heldout=apart, gradients=gradients)
    found = choose_ridge(layer, variant="weighted", rank=2)
    twin = []
    for value in GRID:
        curve = ds.dalr(layer, variant="weighted", ridge=value).losses(apart, gradients)
        twin.append(np.sqrt(curve[2] / curve[0]))
    np.testing.assert_allclose(found.errors, twin, rtol=1e-9)
    assert "the root of the loss on held-out rows" in found.note
    plain = choose_ridge(layer, rank=2)
    assert "the error on held-out rows" in plain.note
