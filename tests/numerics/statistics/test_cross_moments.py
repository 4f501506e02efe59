"""Laws of the joint record of two runs: it adds like moments, and its blocks are the papers' sums."""

import numpy as np
import oracles
import pytest
from hypothesis import assume, given
from strategies import layers, paired_blocks, row_blocks

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments


def joined(blocks):
    return np.concatenate([x for x, _ in blocks]), np.concatenate([z for _, z in blocks])


def sizes(x, z):
    """What rounding of a sum of products z_i x_j is relative to."""
    return np.outer(np.sqrt((z**2).sum(axis=0)), np.sqrt((x**2).sum(axis=0))) + 1e-300


def assert_close(a, b, *blocks):
    x, z = joined(blocks)
    rows = np.concatenate([x, z], axis=1)
    assert (a.count, a.samples, a.input_features) == (b.count, b.samples, b.input_features)
    assert np.array_equal(a.joint.nonzero, b.joint.nonzero)
    assert (np.abs(a.joint.mean - b.joint.mean) <= 1e-13 * np.sqrt((rows**2).sum(axis=0))).all()
    assert (np.abs(a.joint.scatter - b.joint.scatter) <= 1e-12 * sizes(rows, rows)).all()


@given(paired_blocks(2))
def test_addition_commutes_to_the_bit(blocks):
    a, b = (CrossMoments.of(x, z) for x, z in blocks)
    assert (a + b).same_bits(b + a)


@given(paired_blocks(1))
def test_no_rows_are_the_identity(blocks):
    ((x, z),) = blocks
    a, nothing = CrossMoments.of(x, z), CrossMoments.of(x[:0], z[:0])
    assert nothing.count == 0
    assert (a + nothing).same_bits(a)
    assert (nothing + a).same_bits(a)
    assert (a - nothing).same_bits(a)


@given(paired_blocks(3))
def test_addition_associates_to_rounding_and_equals_the_whole(blocks):
    a, b, c = (CrossMoments.of(x, z) for x, z in blocks)
    assert_close((a + b) + c, a + (b + c), *blocks)
    assert_close((a + b) + c, CrossMoments.of(*joined(blocks)), *blocks)


@given(paired_blocks(2))
def test_subtraction_undoes_addition(blocks):
    a, b = (CrossMoments.of(x, z) for x, z in blocks)
    back = (a + b) - b
    if a.count and b.count:
        assert_close(back, a, *blocks)
        assert np.isnan(back.inputs.max_abs).all()
        assert np.isnan(back.outputs.maximum).all()
    else:
        assert back.count == a.count


@given(paired_blocks(2))
def test_blocks_are_the_papers_sums(blocks):
    x, z = joined(blocks)
    assume(len(x))
    cross = CrossMoments.of(*blocks[0]) + CrossMoments.of(*blocks[1])
    gram, about = oracles.cross_moments(x.T, z.T)
    bound = 1e-12 * sizes(x, z)
    assert (np.abs(cross.cross_gram - gram) <= bound).all()
    assert (np.abs(cross.cross_scatter - about) <= bound).all()
    assert (np.abs(cross.cross_covariance * len(x) - about) <= bound).all()


@given(paired_blocks(1))
def test_marginals_are_the_moments_of_each_side(blocks):
    ((x, z),) = blocks
    cross = CrossMoments.of(x, z, samples=len(x) // 2)
    assert (
        (cross.inputs.features, cross.outputs.features)
        == (x.shape[1], z.shape[1])
        == (
            cross.input_features,
            cross.output_features,
        )
    )
    for part, rows in ((cross.inputs, x), (cross.outputs, z)):
        alone = Moments.of(rows, samples=len(x) // 2)
        assert (part.count, part.samples) == (alone.count, alone.samples)
        for name in ("mean", "max_abs", "maximum", "nonzero"):
            assert np.array_equal(getattr(part, name), getattr(alone, name)), name
        assert (np.abs(part.scatter - alone.scatter) <= 1e-12 * sizes(rows, rows)).all()
        assert np.shares_memory(part.scatter, cross.joint.scatter)


@given(layers(kinds=("generic", "rank_deficient", "huge_mean", "relu", "constant")))
def test_outputs_with_their_bias_are_taken_about_it(layer):
    """Z = y - b: about b, the outputs' sums are those of W X; about the means the bias does not show."""
    x, weight, bias = layer
    cross = CrossMoments.of(x, x @ weight.T + bias)
    gram, about = oracles.cross_moments(x.T, (x @ weight.T).T)
    y = x @ weight.T + bias
    bound = 1e-11 * (sizes(x, y) + sizes(x, x @ weight.T) + sizes(x, np.broadcast_to(bias, y.shape)))
    assert (np.abs(cross.cross_scatter_about(np.zeros(x.shape[1]), bias) - gram) <= bound).all()
    assert (np.abs(cross.cross_scatter - about) <= bound).all()


def test_a_mean_of_ten_thousand_spreads_keeps_its_cross_covariance():
    """To 1e-12 of sqrt(C_xx C_zz); sums about zero lose eight digits of it."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, 5)) + 1e4
    z = x @ rng.normal(size=(5, 4)) + rng.normal(size=(3000, 4)) - 1e4
    total = CrossMoments.of(x[:0], z[:0])
    for block in np.array_split(np.arange(3000), 7):
        total = total + CrossMoments.of(x[block], z[block])
    _, exact = oracles.cross_moments(x.T, z.T)
    unit = 3000 * np.outer(z.std(axis=0), x.std(axis=0))
    assert (np.abs(total.cross_scatter - exact) / unit).max() <= 1e-12


def test_dead_and_constant_features_have_exactly_no_cross_scatter():
    x = np.random.default_rng(0).normal(size=(9, 3))
    z = np.array([[0.0, 0.1, 1.0]] * 9) * np.array([1.0, 1.0, 0.0]) + np.eye(9, 3) * np.array([0.0, 0.0, 1.0])
    scatter = (CrossMoments.of(x[:4], z[:4]) + CrossMoments.of(x[4:], z[4:])).cross_scatter
    assert (scatter[:2] == 0.0).all()
    assert (scatter[2] != 0.0).all()


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_refused_on_either_side(side, bad):
    rows = {"inputs": np.ones((4, 2)), "outputs": np.ones((4, 3))}
    rows[side][1, 1] = bad
    with pytest.raises(NonFiniteError, match=f"in feature {1 if side == 'inputs' else 3}"):
        CrossMoments.of(**rows)


@pytest.mark.parametrize(("x", "z"), [((4, 2), (5, 3)), ((4,), (4, 3)), ((4, 2), (4, 3, 1))])
def test_rows_that_do_not_pair_up_are_refused(x, z):
    with pytest.raises(InvalidInputError, match=f"got shapes .*{x[0]}.* and .*{z[0]}"):
        CrossMoments.of(np.ones(x), np.ones(z))


@pytest.mark.parametrize("inputs", [0, 5, 6, -1])
def test_both_sides_need_a_feature(inputs):
    with pytest.raises(InvalidInputError, match=f"inputs must be 1..4 of the 5 joint features.* got {inputs}"):
        CrossMoments(Moments.empty(5), inputs)


def test_records_of_other_widths_are_refused_also_where_the_sum_agrees():
    a, b = CrossMoments(Moments.empty(5), 2), CrossMoments(Moments.empty(5), 3)
    with pytest.raises(InvalidInputError, match="2 inputs and 3 outputs, and of 3 and 2, cannot be added"):
        a + b
    with pytest.raises(InvalidInputError, match="cannot be subtracted"):
        a - b
    with pytest.raises(InvalidInputError, match="no rows have no covariance"):
        _ = a.cross_covariance
    assert not a.same_bits(b)


@given(row_blocks())
def test_sums_of_squares_have_no_negative_margin_beyond_rounding(rows):
    moments = Moments.of(rows)
    assert -4.0 * moments.features * np.finfo(float).eps <= moments.psd_margin <= 1.0 / moments.features + 1e-15


def test_a_subtraction_says_how_indefinite_it_left_the_scatter():
    """What was 1e8 larger in the sum is rounding in the difference, and the margin is of that size."""
    rng = np.random.default_rng(0)
    small, large = (Moments.of(scale * rng.normal(size=(50, 6)) @ np.diag([1, 1, 1, 1, 1, 0])) for scale in (1.0, 1e6))
    kept = (small + large) - large
    smallest, trace = np.linalg.eigvalsh(kept.scatter)[0], np.trace(kept.scatter)
    assert kept.psd_margin == pytest.approx(smallest / trace, rel=1e-6, abs=1e-12)
    lost = (Moments.of(1e-3 * rng.normal(size=(5, 6))) + large) - large
    assert lost.psd_margin < -1e-3
    assert Moments.empty(3).psd_margin == Moments.of(np.ones((4, 3))).psd_margin == 0.0


@given(paired_blocks(1))
def test_what_a_layer_gives_follows_from_what_it_reads(blocks):
    ((x, z),) = blocks
    assume(len(x) > 0)
    weight, bias = np.random.default_rng(0).normal(size=(z.shape[1] + 3, z.shape[1])), np.arange(z.shape[1] + 3.0)
    outputs = z @ weight.T + bias
    through = CrossMoments.of(x, z).with_outputs_through(weight, bias)
    seen = CrossMoments.of(x, outputs)
    size = 1e-12 * (1.0 + max(np.abs(x).max(), np.abs(z).max(), np.abs(outputs).max())) ** 2 * len(x)
    assert (np.abs(through.joint.mean - seen.joint.mean) <= size).all()
    assert (np.abs(through.joint.scatter - seen.joint.scatter) <= 100 * size).all()
    assert through.inputs.same_bits(CrossMoments.of(x, z).inputs)
    assert np.isnan(through.outputs.maximum).all()
