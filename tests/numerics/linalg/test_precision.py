"""The fast mode: float32 products, float64 sums, within the stated error whatever the units and the means."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import KINDS, make_rows

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.precision import Precision, ScaledRows, error_bound, scaled
from dalr_stream.numerics.linalg.rank_k import add_rank_k_single
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import Tile
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip, strips
from dalr_stream.numerics.statistics.folding import CpuFold, FoldState, LaneFold, LaneState, Workspace
from dalr_stream.streaming.folding import Folding

DOUBLE_TOLERANCE = 1e-12  # of the double fold that the fast one is compared with, tests/folded.py


def folded(rows, height, precision, executor=None):
    fold = CpuFold(FoldState.empty(Strip(0, rows.shape[1])), Workspace(), executor, precision)
    for start in range(0, len(rows), height):
        tile = rows[start : start + height]
        fold.update(tile, len(tile))
    return fold.state().moments()


def assert_within_the_bound(rows, height):
    single, double = (folded(rows, height, precision) for precision in (Precision.SINGLE, Precision.DOUBLE))
    root = np.sqrt(np.diagonal(double.scatter))
    allowed = (error_bound(height) + DOUBLE_TOLERANCE) * np.outer(root, root)
    assert (np.abs(single.scatter - double.scatter) <= allowed).all()
    assert np.array_equal(single.mean, double.mean)
    assert np.array_equal(single.maximum, double.maximum)
    assert np.array_equal(single.nonzero, double.nonzero)
    return single, double


@given(st.sampled_from(KINDS), st.integers(1, 200), st.integers(1, 12), st.integers(1, 70), st.integers(0, 99))
def test_the_error_stays_within_its_bound_for_every_kind_of_rows(kind, n, d, height, seed):
    assert_within_the_bound(make_rows(kind, n, d, seed), height)


@pytest.mark.parametrize("height", [256, 4096])
def test_a_mean_that_dwarfs_the_spread_costs_nothing(height):
    """Raw float32 products of these rows would be off by 1e8 times the scatter."""
    rows = np.random.default_rng(0).normal(size=(6000, 20))
    rows[3000:] += 5.0  # most of the scatter is the rank-one term between tiles
    near, far = assert_within_the_bound(rows, height)[0], assert_within_the_bound(rows + 2.0**20, height)[0]
    root = np.sqrt(np.diagonal(near.scatter))
    assert (np.abs(near.scatter - far.scatter) <= error_bound(height) * np.outer(root, root)).all()


def test_units_in_which_float32_would_overflow_or_vanish_cost_nothing():
    rows = np.random.default_rng(1).normal(size=(500, 6)) * 10.0 ** np.array([-150.0, -30.0, -3.0, 3.0, 30.0, 150.0])
    single, _ = assert_within_the_bound(rows, 128)
    assert (np.diagonal(single.scatter) > 0).all()
    assert np.isfinite(single.scatter).all()


def test_products_are_float32_ones():
    rows = np.random.default_rng(2).normal(size=(4096, 50))
    single, double = assert_within_the_bound(rows, 4096)
    error = np.abs(single.scatter - double.scatter).max() / double.scatter.max()
    assert 1e-9 < error < error_bound(4096)


def test_small_whole_numbers_are_folded_exactly():
    """Deviations from a whole mean and their products fit 24 bits, and units are powers of two."""
    half = np.random.default_rng(3).integers(-9, 10, size=(3, 64, 8)).astype(np.float64)
    rows = np.concatenate([half, -half], axis=1).reshape(-1, 8)  # every run of 128 rows has a mean of zero
    assert np.array_equal(folded(rows, 256, Precision.SINGLE).scatter, rows.T @ rows)


@pytest.mark.parametrize("kind", ["constant", "all_dead"])
def test_features_that_never_vary_have_exactly_no_scatter(kind):
    rows = make_rows(kind, 100, 5, 0)
    still = np.ptp(rows, axis=0) == 0
    assert still.any()
    assert not folded(rows, 30, Precision.SINGLE).scatter[still].any()


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("d", [1, 3, 17])
def test_rows_are_rounded_within_their_own_memory(n, d):
    rows = np.random.default_rng(n).normal(size=(n, d)) * 10.0 ** np.arange(-d, d, 2)
    wide = rows.copy()
    found = scaled(wide)
    assert np.shares_memory(found.rows, wide)
    assert (np.frexp(found.scale)[0] == 0.5).all()
    assert np.array_equal(found.rows, (rows / found.scale).astype(np.float32))
    largest = np.abs(found.rows).max(axis=0)
    assert ((largest >= 0.5) & (largest <= 1.0)).all()


def test_blocks_shared_by_threads_and_strips_have_the_bits_of_one_fold():
    rows = np.random.default_rng(4).normal(size=(300, 2100))
    with ThreadPoolExecutor(2) as executor:
        shared = folded(rows, 256, Precision.SINGLE, executor)
    whole = folded(rows, 256, Precision.SINGLE)
    assert shared.same_bits(whole)
    rule = FoldRule(2100, HoldoutRule(0.0), Precision.SINGLE)
    for strip in strips(2100, 0):
        lane = LaneFold(rule, state=LaneState.empty(rule, strip))
        for number, start in enumerate((0, 256)):
            samples = np.arange(start, min(start + 256, 300))
            lane.update(Tile.of(number, rows[samples], samples, start - 1))
        found = np.tril(lane.state().training.scatter, strip.first)
        assert np.array_equal(found, np.tril(whole.scatter)[strip.first : strip.stop, : strip.stop])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((2, 4)), "rows float32"),
        (np.asfortranarray(np.ones((3, 4), np.float32)), "C order"),
        (np.ones((2, 5), np.float32), "last rows of 5 x 5"),
    ],
)
def test_memory_that_blas_would_misread_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        add_rank_k_single(np.zeros((4, 4)), ScaledRows(rows, np.ones(4)))


def test_the_precision_is_an_option_of_the_folding_and_part_of_the_rule():
    assert Folding(precision="single").rule(8).precision is Precision.SINGLE
    assert replace(Folding().rule(8), blas="") == FoldRule(8)
    with pytest.raises(InvalidInputError, match="precision must be one of 'double', 'single', got 'half'"):
        Folding(precision="half")
