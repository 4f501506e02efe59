"""Rows to moments: the batches leave no trace, the split obeys its rule, and the numbers are those of the rows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from folded import (
    KINDS,
    assert_moments_of,
    batch_sizes,
    cpu_fold,
    cut,
    fold,
    hard_rows,
    tiles_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip, strips
from dalr_stream.numerics.statistics.folding import FoldState, LaneFold, LaneState, join_strips


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_folded_moments_are_those_of_the_rows(kind, dtype):
    rows = hard_rows(kind).astype(dtype)
    rule = FoldRule(8, holdout=HoldoutRule(0.2, seed=3))
    split = fold(rows, rule, [333])
    apart = rule.holdout.mask(np.arange(len(rows)))
    assert_moments_of(split.training, rows[~apart].astype(np.float64))
    assert_moments_of(split.heldout, rows[apart].astype(np.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[1], [500, 1, 40], [5000]])
def test_one_fold_of_many_blocks_holds_the_moments_of_all_their_rows(kind, sizes):
    """Each block has a mean of its own: the term that joins it to what came before is most of the scatter."""
    rows = hard_rows(kind)[::10] if sizes == [1] else hard_rows(kind)
    fold, blocks = cpu_fold(8), list(cut(rows, sizes))
    for block in blocks:
        fold.update(block, len(block))
    assert_moments_of(fold.state().moments(), rows, updates=len(blocks))


@pytest.mark.parametrize("kind", ["constant", "dead"])
def test_features_that_never_vary_have_exactly_no_scatter(kind):
    rows = hard_rows(kind)
    still = np.ptp(rows, axis=0) == 0
    training = fold(rows, FoldRule(8), [1000]).training
    assert still.sum() == 2
    assert not training.scatter[still].any()
    assert np.array_equal(training.mean[still], rows[0, still])


@settings(max_examples=15)
@given(batch_sizes, st.sampled_from(KINDS), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.3]))
def test_the_batches_leave_no_trace_in_the_bits(sizes, kind, per_sample, share):
    rows = hard_rows(kind).astype(np.float32)[:9999]
    rule, samples = FoldRule(8, HoldoutRule(share)), np.arange(len(rows)) // per_sample
    one, other = fold(rows, rule, sizes, samples), fold(rows, rule, [len(rows)], samples)
    assert one.training.same_bits(other.training)
    assert one.heldout.same_bits(other.heldout)


def test_a_fold_of_column_blocks_has_the_bits_of_a_fold_without():
    rows = np.random.default_rng(0).normal(size=(300, 1100))
    with ThreadPoolExecutor(2) as executor:
        found = []
        for chosen in (None, executor):
            fold = cpu_fold(1100, chosen)
            fold.update(rows[:256], 256)
            fold.update(rows[256:], 44)
            found.append(fold.state().moments())
    assert found[0].same_bits(found[1])


@pytest.mark.parametrize("width", [1, 1024, 1025, 2500])
@pytest.mark.parametrize("most_cells", [0, 1_200_000, 3_000_000, 10**9])
def test_strips_cut_the_whole_matrix_at_block_borders_and_as_small_as_asked(width, most_cells):
    cut = strips(width, most_cells)
    assert [strip.first for strip in cut] == [0, *(strip.stop for strip in cut[:-1])]
    assert cut[-1].stop == width
    assert all(strip.first % 1024 == 0 for strip in cut)
    assert all(strip.cells <= most_cells or strip.stop - strip.first <= 1024 for strip in cut)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_strips_joined_have_the_bits_of_the_whole(share):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(600, 2100)) + 50 * rng.normal(size=2100)
    rule = FoldRule(2100, HoldoutRule(share))
    lanes = [LaneFold(rule), *(LaneFold(rule, state=LaneState.empty(rule, strip)) for strip in strips(2100, 0))]
    assert len(lanes) == 4
    for tile in tiles_of(rows, [600], 256):
        for lane in lanes:
            lane.update(tile)
    whole, *parts = (lane.state() for lane in lanes)
    heldout = None if share == 0.0 else join_strips([part.heldout for part in parts])
    joined = LaneState(join_strips([part.training for part in parts]), heldout).moments()
    assert joined.training.same_bits(whole.training.moments())
    assert share == 0.0 or joined.heldout.same_bits(whole.heldout.moments())


def test_a_strip_alone_is_no_record():
    with pytest.raises(InvalidInputError, match="not a whole matrix"):
        FoldState.empty(Strip(1024, 2048)).moments()


def test_a_fold_goes_on_from_a_state_to_the_same_bits():
    rows, rule = hard_rows("generic"), FoldRule(8, HoldoutRule(0.2))
    tiles = tiles_of(rows, [10_000], 512)
    straight, first = LaneFold(rule), LaneFold(rule)
    for tile in tiles:
        straight.update(tile)
    for tile in tiles[:7]:
        first.update(tile)
    second = LaneFold(rule, state=first.state())
    for tile in tiles[7:]:
        second.update(tile)
    one, other = straight.freeze(), second.freeze()
    assert one.training.same_bits(other.training)
    assert one.heldout.same_bits(other.heldout)


def test_training_and_heldout_are_all_of_the_rows():
    rows = hard_rows("generic")
    split = fold(rows, FoldRule(8, holdout=HoldoutRule(0.4)), [512])
    assert_moments_of(split.training + split.heldout, rows)


def test_no_share_keeps_nothing_apart():
    split = fold(hard_rows("generic"), FoldRule(8, holdout=HoldoutRule(0.0)), [512])
    assert (split.training.count, split.heldout.count) == (10_000, 0)


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "1 NaN and 0 Inf"), (-np.inf, "0 NaN and 1 Inf")])
def test_a_fold_that_met_a_bad_row_among_those_of_its_first_product_is_as_it_was(bad, message):
    good = hard_rows("generic", 100)
    spoilt = hard_rows("generic", 100)
    spoilt[99, 5] = bad
    fold, twin = cpu_fold(8), cpu_fold(8)
    for one in (fold, twin):
        one.update(good, 100)
    with pytest.raises(NonFiniteError, match=f"{message} in feature 5"):
        fold.update(spoilt, 100)
    for one in (fold, twin):
        one.update(good[:50], 50)
    assert fold.state().moments().same_bits(twin.state().moments())


@pytest.mark.parametrize("place", [0, 1023, 1024, 4000])
def test_a_bad_row_is_told_of_wherever_in_a_tile_it_stands(place):
    rows = hard_rows("generic", 4096)
    rows[place, 5] = np.nan
    with pytest.raises(NonFiniteError, match="got 1 NaN and 0 Inf in feature 5"):
        cpu_fold(8).update(rows, 4096)


def test_finite_rows_whose_differences_overflow_are_refused_as_such():
    rows = np.array([[1.7e308], [-1.7e308]])
    with pytest.raises(NonFiniteError, match="so large that their differences overflow float64"):
        cpu_fold(1).update(rows, 2)


def test_a_lane_without_a_tile_holds_no_matrix():
    rule = FoldRule(600, HoldoutRule(0.2))
    lane = LaneFold(rule)
    assert {sum(state.scatter.strides) for state in (lane.state().training, lane.state().heldout)} == {0}
    rows = np.random.default_rng(0).normal(size=(40, 600))
    for tile in tiles_of(rows, [40], rule.tile_rows):
        lane.update(tile)
    assert lane.state().training.scatter.strides == (600 * 8, 8)
    assert LaneFold(rule).freeze().training.count == 0
