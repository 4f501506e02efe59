"""Samples are kept apart whole, by their number alone, in the share asked for."""

import numpy as np
import pytest
from folded import (
    fold,
)
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.fold_rule import FoldRule


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
