"""What reads the kept nodes, solved itself: against least squares on the rows, and by its laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dalr_stream as ds
from dalr_stream.numerics.selection.restoration import reader_errors, refitted, restored_towards
from dalr_stream.numerics.statistics.channels import moments_of_taps
from dalr_stream.numerics.statistics.cross import CrossMoments


def drawn(seed, n=80, d=7, m=4, mean=1.0, dead=False):
    rng = np.random.default_rng(seed)
    psi = np.maximum(rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + mean, 0.0)
    if dead:
        psi[:, 1] = 0.0
        psi[:, 2] = psi[:, 3]
    weight, bias = rng.standard_normal((m, d)), rng.standard_normal(m)
    z = psi @ weight.T + bias + 0.5 * np.tanh(psi @ rng.standard_normal((d, m))) + 0.3
    return psi, z, weight, bias


def selected(psi, size, ridge=1e-3):
    return ds.spectral(ds.Moments.of(psi)).at_size(size, ridge=ridge)


def error(reader, kept, psi, z):
    return float(np.sum((z - psi[:, kept] @ reader.weight.T - (0.0 if reader.bias is None else reader.bias)) ** 2))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 7), mean=st.sampled_from([0.0, 1.0, 1e4]))
def test_without_a_ridge_it_is_least_squares_on_the_rows(seed, size, mean):
    psi, z, weight, bias = drawn(seed, mean=mean)
    nodes = selected(psi, size)
    for given_bias, rows in ((bias, np.c_[psi[:, nodes.kept], np.ones(len(psi))]), (None, psi[:, nodes.kept])):
        reader = refitted(nodes, weight, given_bias, CrossMoments.of(psi, z), 0.0)
        best = float(np.sum((z - rows @ np.linalg.lstsq(rows, z, rcond=None)[0]) ** 2))
        assert error(reader, nodes.kept, psi, z) <= best * (1 + 1e-5) + 1e-7 * np.sum((z - z.mean(0)) ** 2)
        assert (reader.bias is None) == (given_bias is None)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_towards_what_the_restored_nodes_give_it_is_what_restoring_them_gives(ridge):
    """z = W phi: the regression of z is W times that of phi; and W A_J itself at an endless ridge."""
    psi, _, weight, _ = drawn(3)
    phi = psi + 0.3 * np.random.default_rng(5).standard_normal(psi.shape)
    nodes = selected(psi, 4)
    towards = restored_towards(nodes, CrossMoments.of(psi, phi), ridge)
    reader = refitted(nodes, weight, None, CrossMoments.of(psi, phi @ weight.T), ridge)
    np.testing.assert_allclose(reader.weight, weight @ towards.restore, rtol=1e-8, atol=1e-8)
    far = refitted(nodes, weight, None, CrossMoments.of(psi, phi @ weight.T), 1e12)
    np.testing.assert_allclose(far.weight, weight @ nodes.restore, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("n", [80, 3, 1])
def test_few_rows_and_nodes_that_are_dead_or_alike_leave_finite_numbers_and_true_errors(dead, n):
    psi, z, weight, bias = drawn(7, n=n, dead=dead)
    nodes, moments = selected(psi, 3), CrossMoments.of(psi, z)
    reader = refitted(nodes, weight, bias, moments, 1e-3)
    before, after, whole = reader_errors(nodes, weight, bias, reader, moments)
    assert before == pytest.approx(np.sum((z - psi @ weight.T - bias) ** 2), rel=1e-7, abs=1e-7)
    assert after == pytest.approx(error(reader, nodes.kept, psi, z), rel=1e-7, abs=1e-7)
    assert whole == pytest.approx(np.sum((z - bias) ** 2), rel=1e-9)


def test_of_random_rivals_none_is_better_in_its_own_objective():
    psi, z, weight, bias = drawn(11)
    nodes, moments, ridge = selected(psi, 4), CrossMoments.of(psi, z), 1e-2
    lam = ridge * len(psi) * np.trace(psi.T @ psi / len(psi)) / psi.shape[1]

    def objective(reader):
        return error(reader, nodes.kept, psi, z) + lam * np.sum((reader.weight - weight @ nodes.restore) ** 2)

    own, rng = refitted(nodes, weight, bias, moments, ridge), np.random.default_rng(0)
    for _ in range(50):
        rival = type(own)(
            own.weight + 1e-3 * rng.standard_normal(own.weight.shape), own.bias + 1e-3 * rng.standard_normal(4)
        )
        assert objective(rival) > objective(own)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 4), taps=st.integers(1, 3))
def test_several_taps_of_each_node_are_kept_together_and_fitted_by_least_squares(seed, size, taps):
    rng = np.random.default_rng(seed)
    patches = np.maximum(rng.standard_normal((120, 4 * taps)) @ rng.standard_normal((4 * taps, 4 * taps)), 0.0)
    weight, bias = rng.standard_normal((3, 4 * taps)), rng.standard_normal(3)
    z = patches @ weight.T + bias + 0.3 * rng.standard_normal((120, 3))
    moments = CrossMoments.of(patches, z)
    nodes = ds.spectral(moments_of_taps([moments.inputs], 4)).at_size(size, ridge=1e-3)
    reader = refitted(nodes, weight, bias, moments, 0.0)
    kept = patches.reshape(120, 4, taps)[:, nodes.kept].reshape(120, -1)
    rows = np.c_[kept, np.ones(120)]
    best = float(np.sum((z - rows @ np.linalg.lstsq(rows, z, rcond=None)[0]) ** 2))
    after = float(np.sum((z - kept @ reader.weight.T - reader.bias) ** 2))
    assert reader.weight.shape == (3, size * taps)
    assert after == pytest.approx(best, rel=1e-6, abs=1e-7 * np.sum(z**2))
    assert reader_errors(nodes, weight, bias, reader, moments)[1] == pytest.approx(after, rel=1e-6, abs=1e-7)


def test_moments_of_taps_are_those_of_all_taps_as_rows():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((50, 12)), rng.standard_normal((40, 8))
    found = moments_of_taps([ds.Moments.of(one), ds.Moments.of(other)], 4)
    rows = [x.reshape(len(x), 4, -1).transpose(0, 2, 1).reshape(-1, 4) for x in (one, other)]
    expected = ds.Moments.of(np.concatenate(rows))
    np.testing.assert_allclose(found.second_moment, expected.second_moment, rtol=1e-12)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-10, atol=1e-12)
    assert (found.count, found.samples) == (230, 50)
    np.testing.assert_array_equal(found.maximum, expected.maximum)
