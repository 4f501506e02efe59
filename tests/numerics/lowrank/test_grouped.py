"""Groups of a layer together: what is summed, what is shared, and that equal groups are one group said twice."""

import numpy as np
import pytest

from dalr_stream.errors import InvalidInputError, RankError
from dalr_stream.numerics.lowrank.grouped import GroupedFactors, factors_of
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.resampling.jackknife import jackknife_low_rank
from dalr_stream.numerics.resampling.ridge_choice import choose_ridge
from dalr_stream.numerics.sizes.losses import lost_energy, relative_errors
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.statistics.grouped import GroupedMoments, moments_of
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.moments import Moments

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")
G, M, D, N = 3, 4, 6, 50
RIDGE = Ridge.relative(1e-2)


def drawn(seed=0, n=N):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(G, n, D)) * (1.0 + np.arange(G))[:, None, None] + 1.0
    rows[rng.random(rows.shape) < 0.2] = 0.0
    return rows, np.random.default_rng(7).normal(size=(G, M, D)), np.random.default_rng(8).normal(size=(G, M))


def solved(rows, weights, biases):
    moments = moments_of([Moments.of(part) for part in rows])
    groups = zip(weights, biases, moments.parts, strict=True)
    return factors_of([dalr(*group) for group in groups]), moments


def test_errors_are_those_of_the_block_diagonal_matrix_on_whole_rows():
    rows, weights, biases = drawn()
    factors, moments = solved(rows, weights, biases)
    y = np.concatenate([part @ weight.T for part, weight in zip(rows, weights, strict=True)], axis=1)
    for rank in range(1, M + 1):
        pairs = factors.at_rank(rank).parts
        now = [part @ pair.down.T @ pair.up.T + pair.bias for part, pair in zip(rows, pairs, strict=True)]
        gap = np.concatenate(now, axis=1) - biases.ravel() - y
        assert factors.errors(moments)[rank] == pytest.approx(np.sum(gap**2), abs=1e-9 * np.sum(y**2))
        assert relative_errors(factors, moments)[rank] == pytest.approx(
            np.linalg.norm(gap) / np.linalg.norm(y), abs=1e-9
        )


def test_moments_of_groups_are_views_of_whole_rows_and_add_up():
    rows, *_ = drawn()
    whole = np.concatenate(list(rows), axis=1)
    found = moments_of([Moments.of(part) for part in rows])
    assert (found.count, found.samples, found.features) == (N, N, G * D)
    np.testing.assert_array_equal(found.nonzero, (whole != 0).sum(axis=0))
    np.testing.assert_array_equal(found.active_rate, (whole != 0).mean(axis=0))
    shards = [moments_of([Moments.of(part[start : start + 10]) for part in rows]) for start in range(0, N, 10)]
    for summed, part in zip(merge_all(iter(shards)).parts, rows, strict=True):
        np.testing.assert_allclose(summed.gram, part.T @ part)


def test_equal_groups_are_one_group_said_again():
    """Curves, error bars and the chosen ridge are those of the group alone: shares do not change when doubled."""
    rows, weights, biases = drawn()
    alone = [Moments.of(rows[0][start : start + 10]) for start in range(0, N, 10)]
    twice = [moments_of([shard, shard]) for shard in alone]
    heldout = Moments.of(drawn(seed=5)[0][0])

    def one(moments, ridge=RIDGE):
        return dalr(weights[0], biases[0], moments, ridge=ridge)

    def both(moments, ridge=RIDGE):
        return factors_of([one(part, ridge) for part in moments.parts])

    found = jackknife_low_rank(twice, both, moments_of([heldout, heldout]))
    expected = jackknife_low_rank(alone, one, heldout)
    for name in ("training", "training_error", "unseen", "unseen_error", "heldout_error", "turn"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12, err_msg=name)
    assert choose_ridge(both, shards=twice).errors == pytest.approx(choose_ridge(one, shards=alone).errors)


def test_a_louder_group_weighs_more():
    rows, weights, biases = drawn()
    factors, moments = solved(rows, weights, biases)
    own = [lost_energy(part, seen)[1] for part, seen in zip(factors.parts, moments.parts, strict=True)]
    energies = [np.vdot(w @ m.gram, w) for w, m in zip(weights, moments.parts, strict=True)]
    assert lost_energy(factors, moments)[1] == pytest.approx(np.average(own, weights=energies))


def test_sizes_are_those_of_each_group_and_parameters_of_all():
    factors, _ = solved(*drawn())
    shape = LayerShape(factors.outputs, factors.inputs, groups=G)
    assert (
        (factors.max_rank, factors.break_even_rank) == (shape.max_rank, shape.break_even_rank) == (M, M * D // (M + D))
    )
    assert factors.at_rank(2).rank == 2
    assert factors.at_rank(2).parameters == shape.factor_parameters(2) == G * 2 * (M + D)
    with pytest.raises(RankError, match=r"layer 'conv@group\*': rank must lie in 1..4, got 5"):
        factors.at_rank(5, layer="conv")


def test_groups_that_do_not_belong_together_are_refused():
    rows, weights, biases = drawn()
    first = dalr(weights[0], biases[0], Moments.of(rows[0]))
    small = dalr(weights[0], biases[0], Moments.of(rows[0]), max_rank=2)
    with pytest.raises(InvalidInputError, match="all must be of one shape, one rank and one method"):
        GroupedFactors((first, small))
    with pytest.raises(ValueError, match="zip"):
        relative_errors(factors_of([first, first]), GroupedMoments((Moments.of(rows[0]),)))


def test_the_objective_of_groups_is_the_sum_of_theirs():
    factors, _ = solved(*drawn())
    np.testing.assert_allclose(factors.objective, np.sum([part.objective for part in factors.parts], axis=0))
