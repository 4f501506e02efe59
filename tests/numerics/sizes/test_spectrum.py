"""Singular values that low-rank methods truncate, and ranks by their ratio."""

import numpy as np
import pytest

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError


@pytest.fixture
def layer():
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.standard_normal((200, 5)) @ rng.standard_normal((5, 8)), 0.0)
    return rng.standard_normal((6, 8)), rows


def test_they_are_those_of_the_weight_for_truncated_svd(layer):
    weight, _ = layer
    values = ds.numerics.singular_values(ds.truncated_svd(weight, None))
    np.testing.assert_allclose(values, np.linalg.svd(weight, compute_uv=False), rtol=1e-10)


@pytest.mark.parametrize("variant", ["anchored", "published", "optimal"])
def test_they_are_those_of_the_outputs_for_dalr_without_a_ridge(layer, variant):
    weight, rows = layer
    factors = ds.dalr(weight, None, ds.Moments.of(rows), ridge=1e-12, variant=variant, affine=False)
    outputs = np.linalg.svd(rows @ weight.T, compute_uv=False)
    values = ds.numerics.singular_values(factors)
    np.testing.assert_allclose(values / values[0], outputs / outputs[0], rtol=1e-5, atol=1e-6)


def test_a_rank_is_the_first_that_reaches_the_share():
    factors = ds.truncated_svd(np.diag([5.0, 3.0, 2.0]), None)
    found = [ds.numerics.rank_by_singular_values(factors, share) for share in (0.1, 0.5, 0.51, 0.8, 0.81, 1.0)]
    assert found == [1, 1, 2, 2, 3, 3]
    for wrong in (1.5, "90%", float("nan")):
        with pytest.raises(InvalidInputError, match=rf"must lie in \(0, 1\], got {wrong!r}"):
            ds.numerics.rank_by_singular_values(factors, wrong)


def test_a_layer_without_any_has_rank_one_and_directions_that_are_dead_count_nothing(layer):
    weight, rows = layer
    assert ds.numerics.rank_by_singular_values(ds.truncated_svd(np.zeros((3, 4)), None), 1.0) == 1
    rows[:, 2:] = 0.0
    factors = ds.dalr(weight, None, ds.Moments.of(rows), ridge=1e-12, affine=False)
    assert ds.numerics.rank_by_singular_values(factors, 0.999999) == 2
