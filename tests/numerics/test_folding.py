"""Rows to moments: the batches leave no trace, the split obeys its rule, and the numbers are those of the rows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.folding import (
    CpuFold,
    FoldRule,
    FoldState,
    LaneFold,
    LaneState,
    SplitMoments,
    Strip,
    Workspace,
    join_strips,
    lane_count,
    merge_all,
    strips,
)
from dalr_stream.numerics.holdout import HoldoutRule
from dalr_stream.numerics.moments import Moments
from dalr_stream.numerics.tiling import VARYING, RowBatch, Tiler, rows_per_sample, tile_rows

MEAN_TOLERANCE = 1e-12  # relative to the standard error, besides the rounding of the mean itself at each update
SCATTER_TOLERANCE = 1e-12  # relative to sqrt(C_ii C_jj), DESIGN.md section 3


def cut(rows, sizes):
    """Batches of the given sizes, over and over until the rows are used up; zero sizes give empty batches."""
    start = 0
    while start < len(rows):
        for size in sizes:
            yield rows[start : start + size]
            start += size


batch_sizes = st.lists(st.sampled_from([0, 1, 2, 5, 64, 256, 257, 4095, 4096, 9000]), min_size=1, max_size=5).filter(
    lambda sizes: sum(sizes) > 200
)


def tiles_of(rows, sizes, height, samples=None):
    tiler, tiles = Tiler(height), []
    samples = np.arange(len(rows)) if samples is None else samples
    for batch, numbers in zip(cut(rows, sizes), cut(samples, sizes), strict=True):
        tiles += tiler.push(batch, numbers)
    return tiles + list(tiler.flush())


def fold(rows, rule, sizes, samples=None):
    lanes = [LaneFold(rule) for _ in range(rule.lanes)]
    for tile in tiles_of(rows, sizes, rule.tile_rows, samples):
        lanes[tile.number % rule.lanes].update(tile)
    return merge_all([lane.freeze() for lane in lanes])


def cpu_fold(features, executor=None):
    return CpuFold(FoldState.empty(Strip(0, features)), Workspace(), executor)


# --- tiles --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 9), st.lists(st.integers(0, 14), min_size=1, max_size=6).filter(any))
def test_tiles_are_the_rows_in_order_however_they_were_batched(n, height, sizes):
    rows = np.arange(2 * n).reshape(n, 2)
    tiles = tiles_of(rows, sizes, height)
    assert [tile.number for tile in tiles] == list(range(-(-n // height)))
    assert [len(tile.rows) for tile in tiles] == [min(height, n - start) for start in range(0, n, height)]
    assert np.array_equal(np.concatenate([tile.rows for tile in tiles]), rows)
    assert np.array_equal(np.concatenate([tile.samples for tile in tiles]), np.arange(n))


def test_a_tiler_that_resumes_counts_on():
    tiles = list(Tiler(2, first_tile=7, sample_before=3).push(np.zeros((4, 1)), np.array([3, 4, 4, 5])))
    assert [tile.number for tile in tiles] == [7, 8]
    assert [tile.begins.tolist() for tile in tiles] == [[False, True], [False, True]]


def test_rows_that_fill_no_tile_can_be_taken_out_and_pushed_again():
    tiler, rows = Tiler(4), np.arange(10.0).reshape(5, 2)
    assert tiler.pending() is None
    assert len(list(tiler.push(rows, np.arange(5)))) == 1
    held, samples = tiler.pending()
    assert np.array_equal(held, rows[4:])
    again = Tiler(4, first_tile=tiler.next_tile, sample_before=tiler.sample_before)
    assert list(again.push(held, samples)) == []
    (tile,) = again.flush()
    assert (tile.number, tile.samples.tolist(), tile.begins.tolist()) == (1, [4], [True])


def test_nothing_pushed_gives_no_tile():
    tiler = Tiler(4)
    assert list(tiler.push(np.empty((0, 3)), np.empty(0, np.int64))) == []
    assert list(tiler.flush()) == []


@given(st.integers(1, 100_000))
def test_tiles_and_lanes_stay_within_their_bounds(features):
    rows = tile_rows(features)
    assert rows & (rows - 1) == 0
    assert rows >= 256
    assert rows == 256 or rows * features * 4 <= 32 * 2**20
    assert lane_count(features) >= lane_count(features + 1) >= 1


# --- moments of the rows ------------------------------------------------------------------------------------------


def hard_rows(kind, n=10_000):
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8)
    if kind == "huge_mean":
        rows += 1e4 * rows.std(axis=0)
    elif kind == "sorted_by_class":
        rows[:, :4] += np.repeat(np.arange(10.0), n // 10)[:, None] * 1e4
        rows[:4096, 2] = 0.0  # dead in the whole first tile
    elif kind == "constant":
        rows[:, [1, 5]] = [0.1, -3e7]
    elif kind == "dead":
        rows[:, [0, 7]] = 0.0
    elif kind == "duplicated":
        rows[:, 6] = rows[:, 3]
        rows[:, 7] = -2.0 * rows[:, 3]
    return rows


KINDS = ["generic", "huge_mean", "sorted_by_class", "constant", "dead", "duplicated"]


def reference(rows):
    """Mean and scatter in extended precision, in one piece."""
    centred = rows.astype(np.longdouble) - rows[0]
    offset = centred.mean(axis=0)
    centred -= offset
    return rows[0] + offset, np.einsum("ni,nj->ij", centred, centred)


def assert_moments_of(moments, rows, updates=8):
    mean, scatter = reference(rows)
    root = np.sqrt(np.diagonal(scatter))
    assert moments.count == len(rows)
    assert (np.abs(moments.scatter - scatter) <= SCATTER_TOLERANCE * np.outer(root, root)).all()
    rounding = np.finfo(np.float64).eps * np.sqrt(updates) * np.abs(mean)
    assert (np.abs(moments.mean - mean) <= MEAN_TOLERANCE * root / len(rows) + 2 * rounding).all()
    assert np.array_equal(moments.scatter, moments.scatter.T)
    assert np.array_equal(moments.max_abs, np.abs(rows).max(axis=0))
    assert np.array_equal(moments.maximum, rows.max(axis=0))
    assert np.array_equal(moments.nonzero, (rows != 0).sum(axis=0))


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


# --- held-out samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**63])
def test_the_share_kept_apart_is_the_share_asked_for(share, seed):
    n = 100_000
    kept = HoldoutRule(share, seed).mask(np.arange(n)).sum()
    assert abs(kept - share * n) <= 5 * np.sqrt(n * share * (1 - share))


def test_seeds_choose_other_samples_and_the_same_seed_the_same():
    numbers = np.arange(20_000)
    masks = [HoldoutRule(0.3, seed).mask(numbers) for seed in range(6)]
    assert np.array_equal(masks[2], HoldoutRule(0.3, 2).mask(numbers))
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one & other).mean() - 0.09) < 0.015  # as independent draws would overlap


@given(st.permutations(list(range(50))))
def test_a_sample_is_kept_apart_by_its_number_alone(order):
    rule = HoldoutRule(0.5, seed=9)
    order = np.array(order)
    assert np.array_equal(rule.mask(order), rule.mask(np.arange(50))[order])


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(InvalidInputError, match=r"heldout_share must lie in \[0, 1\)"):
        HoldoutRule(share)


@pytest.mark.parametrize("per_sample", [1, 3, 7])
def test_all_rows_of_a_sample_lie_on_one_side_and_samples_are_counted(per_sample):
    """Each sample's rows carry its number; 4096 is no multiple of 3 or 7, so samples straddle tiles."""
    samples = 3000
    rows = np.repeat(np.arange(samples), per_sample)[:, None] == np.arange(40) * (samples // 40)
    rule = FoldRule(40, HoldoutRule(0.3, seed=4))
    split = fold(rows.astype(np.float32), rule, [1000], np.arange(len(rows)) // per_sample)
    assert set(split.training.nonzero) | set(split.heldout.nonzero) == {0, per_sample}
    assert (split.training.nonzero + split.heldout.nonzero == per_sample).all()
    apart = int(rule.holdout.mask(np.arange(samples)).sum())
    assert (split.heldout.samples, split.heldout.count) == (apart, apart * per_sample)
    assert (split.training.samples, split.training.count) == (samples - apart, (samples - apart) * per_sample)


# --- bad rows and the merge tree ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "1 NaN and 0 Inf"), (-np.inf, "0 NaN and 1 Inf")])
def test_a_fold_that_met_a_bad_row_is_as_it_was(bad, message):
    good = hard_rows("generic", 100)
    spoilt = hard_rows("generic", 100)
    spoilt[99, 5] = bad
    fold, twin = cpu_fold(8), cpu_fold(8)
    for one in (fold, twin):
        one.update(good, 100)
    with pytest.raises(NonFiniteError, match=f"{message} in 1 features, the first in feature 5"):
        fold.update(spoilt, 100)
    for one in (fold, twin):
        one.update(good[:50], 50)
    assert fold.state().moments().same_bits(twin.state().moments())


def test_finite_rows_whose_differences_overflow_are_refused_as_such():
    rows = np.array([[1.7e308], [-1.7e308]])
    with pytest.raises(NonFiniteError, match="so large that their differences overflow float64"):
        cpu_fold(1).update(rows, 2)


def test_lanes_merge_in_a_pairwise_tree():
    rng = np.random.default_rng(0)
    parts = [
        SplitMoments(Moments.of(rng.normal(size=(5, 3))), Moments.of(rng.normal(size=(k, 3)))) for k in (1, 0, 4, 2, 3)
    ]
    a, b, c, d, e = parts
    expected = ((a + b) + (c + d)) + e
    found = merge_all(parts)
    assert found.training.same_bits(expected.training)
    assert found.heldout.same_bits(expected.heldout)
    with pytest.raises(InvalidInputError, match="at least one record"):
        merge_all([])


class Leaf:
    """Stands for a record: its sum shows the tree, and it knows how many of its kind are alive."""

    alive = most = 0

    def __init__(self, tree):
        self.tree = tree
        Leaf.alive += 1
        Leaf.most = max(Leaf.most, Leaf.alive)

    def __del__(self):
        Leaf.alive -= 1

    def __add__(self, other):
        return Leaf((self.tree, other.tree))


@pytest.mark.parametrize("count", [*range(1, 20), 31, 32, 33, 63, 100])
def test_records_made_on_the_way_take_the_same_tree_and_little_memory(count):
    level = list(range(count))
    while len(level) > 1:
        level = [tuple(level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    Leaf.alive = Leaf.most = 0
    assert merge_all(Leaf(number) for number in range(count)).tree == level[0]
    assert Leaf.most <= np.log2(count) + 3  # with the sum that is being made


def batch_of(samples, rows):
    return RowBatch(samples, "", {"fc6": np.zeros((rows, 2))})


def test_rows_per_sample_is_one_number_for_the_whole_domain():
    assert rows_per_sample("fc6", batch_of(4, 12), None) == 3
    assert rows_per_sample("fc6", batch_of(4, 12), 3) == 3
    with pytest.raises(InvalidInputError, match=r"layer 'fc6': .* 4 samples gave 12 and earlier ones 2 each"):
        rows_per_sample("fc6", batch_of(4, 12), 2)
    with pytest.raises(InvalidInputError, match=r"layer 'fc6': .* 4 samples gave 10: pad the samples"):
        rows_per_sample("fc6", batch_of(4, 10), None)
    with pytest.raises(InvalidInputError, match=r"layer 'fc6': .* 4 samples gave none"):
        rows_per_sample("fc6", batch_of(4, 0), None)


def test_counts_say_which_rows_are_whose_where_samples_differ():
    batch = RowBatch(3, "", {"fc6": np.zeros((5, 2))}, {"fc6": np.array([2, 0, 3])})
    assert rows_per_sample("fc6", batch, None) == rows_per_sample("fc6", batch, VARYING) == VARYING
    assert batch.sample_numbers("fc6", 10).tolist() == [10, 10, 12, 12, 12]
    assert batch_of(2, 6).sample_numbers("fc6", 5).tolist() == [5, 5, 5, 6, 6, 6]
    with pytest.raises(InvalidInputError, match="earlier ones 2 each"):
        rows_per_sample("fc6", batch, 2)
    with pytest.raises(InvalidInputError, match="earlier ones as many as they have each"):
        rows_per_sample("fc6", batch_of(4, 12), VARYING)
    with pytest.raises(InvalidInputError, match="counts must add up to its 5 rows"):
        rows_per_sample("fc6", RowBatch(2, "", batch.rows, {"fc6": np.array([2, 2])}), None)


def test_samples_of_different_lengths_are_kept_apart_whole_and_counted():
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 6, size=4000)
    samples = np.repeat(np.arange(4000), counts)
    rows = rng.normal(size=(len(samples), 3))
    rule = FoldRule(3, HoldoutRule(0.25, seed=1))
    split = fold(rows, rule, [999], samples)
    apart = rule.holdout.mask(np.arange(4000))
    assert split.heldout.count == counts[apart].sum()
    assert split.heldout.samples == (counts[apart] > 0).sum()
    assert split.training.samples == (counts[~apart] > 0).sum()
