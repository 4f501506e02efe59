"""Random numbers of samples: the same in any batch, of equal chance, and nobody else's."""

import numpy as np
import pytest
from gradient_twin import signs

from dalr_stream.numerics.rows.draws import SampleDraws


@pytest.mark.parametrize("features", [1, 10, 64, 65, 256, 300])
def test_signs_are_bits_of_philox_in_whatever_batch_a_sample_comes(features):
    whole = SampleDraws(5, 0, 9, 2).signs(3, features)
    assert whole.shape == (9, 3, features)
    for first, samples, positions in ((0, 4, 3), (4, 5, 3), (8, 1, 1)):
        part = SampleDraws(5, first, samples, 2).signs(positions, features)
        np.testing.assert_array_equal(part, whole[first : first + samples, :positions])
    for sample in (0, 8):
        np.testing.assert_array_equal(whole[sample], signs(5, sample, 2, 3, features))


def test_seeds_draws_samples_and_positions_have_numbers_of_their_own():
    numbers = [SampleDraws(seed, 0, 4, draw).uniform(3) for seed in (0, 1, 2**64 - 1) for draw in (0, 1)]
    assert np.unique(np.concatenate(numbers)).size == 6 * 4 * 3
    assert 0.0 <= np.min(numbers) <= np.max(numbers) < 1.0


def test_signs_have_no_mean_and_no_correlation():
    drawn = SampleDraws(0, 0, 20_000, 0).signs(1, 70)[:, 0]
    moments = drawn.T @ drawn / len(drawn)
    np.testing.assert_allclose(moments, np.eye(70), atol=6 / len(drawn) ** 0.5)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=5 / len(drawn) ** 0.5)
