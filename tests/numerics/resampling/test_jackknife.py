"""Error bars from shards, against textbook formulas, naive twins and problems whose answer is known."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import dalr_stream as ds
from dalr_stream.errors import FewSamplesWarning, InvalidInputError
from dalr_stream.numerics.resampling.jackknife import jackknife_low_rank, leave_one_out, standard_error
from dalr_stream.numerics.resampling.selection_jackknife import jackknife_selection
from dalr_stream.numerics.resampling.sufficiency import sufficiency
from dalr_stream.numerics.statistics.merging import merge_all

pytestmark = pytest.mark.filterwarnings(
    "ignore::dalr_stream.errors.OutlierFeaturesWarning"  # features of many scales are drawn
)

M, D = 6, 9


def rows_of(n, d=D, seed=0, decay=1.0):
    rng = np.random.default_rng(seed)
    scales = decay ** np.arange(d)
    return rng.normal(size=(n, d)) * scales @ rng.normal(size=(d, d)) + rng.normal(size=d)


def shards_of(rows, g, seed=1):
    dealt = np.random.default_rng(seed).integers(g, size=len(rows))
    return [ds.Moments.of(rows[dealt == number]) for number in range(g)]


def layer(m=M, d=D, seed=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, d)), rng.normal(size=m)


@given(st.integers(2, 30), st.integers(0, 1000))
def test_single_rows_give_the_textbook_error_of_the_mean(n, seed):
    x = np.random.default_rng(seed).normal(size=(n, 3)) * 10
    without = np.array([np.delete(x, out, axis=0).mean(axis=0) for out in range(n)])
    found = standard_error(x.mean(axis=0), without, np.ones(n, np.int64))
    assert np.allclose(found, x.std(axis=0, ddof=1) / np.sqrt(n), rtol=1e-9)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=8), st.integers(0, 1000))
def test_the_mean_of_unequal_groups_has_the_weighted_formula(sizes, seed):
    """For the mean the pseudo-values are the groups' own means (Busing et al. 1999)."""
    rng = np.random.default_rng(seed)
    groups = [rng.normal(size=size) for size in sizes]
    x, n = np.concatenate(groups), sum(sizes)
    without = np.array(
        [np.concatenate([g for j, g in enumerate(groups) if j != out]).mean() for out in range(len(sizes))]
    )
    variance = np.mean([(g.mean() - x.mean()) ** 2 / (n / g.size - 1) for g in groups])
    assert np.allclose(standard_error(x.mean(), without, np.array(sizes)), np.sqrt(variance), rtol=1e-7, atol=1e-12)


@given(st.integers(2, 9), st.integers(0, 1000))
def test_shards_of_one_size_give_tukeys_formula(g, seed):
    rng = np.random.default_rng(seed)
    whole, without = rng.normal(size=4), rng.normal(size=(g, 4))
    twin = np.sqrt((g - 1) / g * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    assert np.allclose(standard_error(whole, without, np.full(g, 7)), twin, rtol=1e-9)


def test_the_spread_of_fresh_samples_is_what_the_jackknife_says():
    """The mean error of 300 independent data sets varies as one data set's jackknife says, on average."""
    w, b = layer()
    curves, bars = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(400, D)) * 0.7 ** np.arange(D)
        found = jackknife_low_rank(shards_of(x, 8, seed), lambda moments: ds.dalr(w, b, moments))
        curves.append(found.training[2])
        bars.append(found.training_error[2])
    assert 0.8 < np.sqrt(np.mean(np.square(bars))) / np.std(curves) < 1.3


@given(st.integers(2, 6), st.integers(0, 100))
@settings(max_examples=20)
def test_leaving_one_out_is_bit_for_bit_never_having_had_it(g, seed):
    shards = shards_of(rows_of(60, seed=seed), g)
    for out, kept in enumerate(leave_one_out(shards)):
        assert kept.same_bits(merge_all([one for number, one in enumerate(shards) if number != out]))


@pytest.mark.parametrize("variant", ["anchored", "optimal"])
def test_every_figure_is_that_of_the_naive_twin(variant):
    rows, apart, g = rows_of(200), rows_of(80, seed=5), 4
    w, b = layer()
    dealt = np.random.default_rng(1).integers(g, size=len(rows))

    def solve(moments):
        return ds.dalr(w, b, moments, variant=variant)

    def error(k, fitted_on, measured_on):
        low = solve(ds.Moments.of(fitted_on)).at_rank(k)
        z = measured_on @ w.T
        return np.sum((z + b - (measured_on @ low.down.T @ low.up.T + low.bias)) ** 2), np.sum(z**2)

    heldout = ds.Moments.of(apart)
    found = jackknife_low_rank([ds.Moments.of(rows[dealt == j]) for j in range(g)], solve, heldout)
    counts = np.bincount(dealt)
    assert np.array_equal(found.counts, counts)
    for k in (1, 2, 3):
        parts = [(rows[dealt != j], rows[dealt == j]) for j in range(g)]
        whole = np.sqrt(np.divide(*error(k, rows, rows)))
        seen = np.array([np.sqrt(np.divide(*error(k, kept, kept))) for kept, _ in parts])
        on_apart = np.array([np.sqrt(np.divide(*error(k, kept, apart))) for kept, _ in parts])
        left = np.array([error(k, kept, out) for kept, out in parts])
        assert np.isclose(found.training[k], whole)
        assert np.isclose(found.training_error[k], standard_error(whole, seen, counts))
        on_whole = np.sqrt(np.divide(*error(k, rows, apart)))
        assert np.isclose(found.heldout_error[k], standard_error(on_whole, on_apart, counts))
        assert np.isclose(found.unseen[k], np.sqrt(left[:, 0].sum() / left[:, 1].sum()))
        u = solve(ds.Moments.of(rows)).at_rank(k).up
        turned = [
            np.sum(np.sin(scipy.linalg.subspace_angles(u, solve(ds.Moments.of(kept)).at_rank(k).up)) ** 2)
            for kept, _ in parts
        ]
        twin = np.sqrt(np.mean((counts.sum() / counts - 1) * turned) / k)
        assert np.isclose(found.turn[k], min(twin, 1.0), rtol=1e-6)
    assert found.turn[0] == 0
    assert found.turn[M] < 1e-6  # all of the outputs' space: nothing can turn


def test_a_selections_stability_is_that_of_plain_sets():
    shards = shards_of(rows_of(60, decay=0.8), 5)
    found = jackknife_selection(shards, ds.spectral)
    whole = ds.spectral(merge_all(shards)).order
    others = [ds.spectral(kept).order for kept in leave_one_out(shards)]
    for k in range(1, D + 1):
        chosen, sets = set(whole[:k]), [set(other[:k]) for other in others]
        assert np.isclose(found.common[k - 1], len(chosen.intersection(*sets)) / k)
        assert np.isclose(found.jaccard[k - 1], np.mean([len(chosen & one) / len(chosen | one) for one in sets]))
    assert found.common[-1] == found.jaccard[-1] == 1.0
    assert np.all(found.retention_error >= 0)
    limited = jackknife_selection(shards, lambda moments: ds.spectral(moments, limit=3))
    assert np.array_equal(limited.common, found.common[:3])


def answer(n, variant="anchored", d=40, m=30, ridge=1e-6):
    w, b = layer(m, d)
    x = np.random.default_rng(7).normal(size=(n, d))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        found = jackknife_low_rank(
            shards_of(x, 8), lambda moments: ds.dalr(w, b, moments, variant=variant, ridge=ds.Ridge.relative(ridge))
        )
    return sufficiency(found, m * d // (m + d)), found


@pytest.mark.parametrize("variant", ["anchored", "optimal"])
def test_many_samples_are_enough_and_fewer_than_features_are_not(variant):
    plenty, _ = answer(8_000, variant)
    assert plenty.enough
    assert "is large enough for ranks up to 17" in plenty.words
    few, _ = answer(25, variant)
    assert not few.enough
    assert "is too small" in few.words
    assert few.training < few.unlimited < few.doubled < few.unseen


def test_the_error_on_unseen_rows_is_foretold():
    """On rows of the same kind that nothing has seen, with the data there are and with twice of them."""
    judged, _ = answer(300)
    w, b = layer(30, 40)
    fresh = ds.Moments.of(np.random.default_rng(99).normal(size=(20_000, 40)))
    measured = []
    for n in (300, 600):
        factors = [
            ds.dalr(
                w, b, ds.Moments.of(np.random.default_rng(seed).normal(size=(n, 40))), ridge=ds.Ridge.relative(1e-6)
            )
            for seed in range(10)
        ]
        energy = np.vdot(w @ fresh.gram, w)
        measured.append(np.sqrt(np.mean([one.errors(fresh)[judged.rank] for one in factors]) / energy))
    assert abs(judged.unseen - measured[0]) < 0.03 * measured[0]
    assert abs(judged.doubled - measured[1]) < 0.03 * measured[1]


def test_a_layer_that_never_moves_needs_no_more_data():
    w, b = layer()
    shards = [ds.Moments.of(np.zeros((5, D))) for _ in range(3)]
    found = jackknife_low_rank(shards, lambda moments: ds.dalr(w, b, moments))
    assert not found.unseen.any()
    assert sufficiency(found, 3).enough


def test_empty_shards_are_left_aside_and_one_alone_is_refused():
    w, b = layer()
    shards = shards_of(rows_of(50), 3)

    def solve(moments):
        return ds.dalr(w, b, moments)

    found = jackknife_low_rank([shards[0], ds.Moments.empty(D), *shards[1:]], solve)
    assert np.array_equal(found.training_error, jackknife_low_rank(shards, solve).training_error)
    with pytest.raises(InvalidInputError, match="at least two shards, got 1"):
        jackknife_low_rank([shards[0], ds.Moments.empty(D)], solve)
    with pytest.raises(InvalidInputError, match=r"largest_rank must lie in 1\.\.6, got 7"):
        sufficiency(found, 7)
