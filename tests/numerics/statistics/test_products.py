"""Products with a scatter, a block of it at a time or from the rows: what they would be with the matrix formed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_rows

from dalr_stream.numerics.statistics import products
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.statistics.products import ByRows, block_rows
from dalr_stream.storage.schema import MAX_CHUNK_BYTES


def formed(rows, centre):
    """The naive twin: the matrix itself."""
    return sum(np.outer(x - centre, x - centre) for x in rows)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.sampled_from([8, 64, 2**25]))
def test_all_of_them_are_those_of_the_matrix(n, d, k, seed, block_bytes):
    rng = np.random.default_rng(seed)
    rows = make_rows("generic", n, d, seed) + 3.0
    left, right, centre = rng.normal(size=(k, d)), rng.normal(size=(k, d)), rng.normal(size=d)
    s = formed(rows, centre)
    scale = max(np.abs(s).max(), 1e-300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "BLOCK_BYTES", block_bytes * d)
        cut = [rows[start : start + 7] for start in range(0, n, 7)]
        for found in (Moments.of(rows).products, ByRows(cut)):
            np.testing.assert_allclose(found.times(left, centre), left @ s, atol=1e-11 * scale)
            np.testing.assert_allclose(found.congruence(left, centre), left @ s @ left.T, atol=1e-11 * scale)
            np.testing.assert_allclose(
                found.forms(left, right, centre), np.diag(left @ s @ right.T), atol=1e-11 * scale
            )
            np.testing.assert_allclose(found.diagonal(centre), np.diag(s), atol=1e-11 * scale)
            assert np.array_equal(found.congruence(left, centre), found.congruence(left, centre).T)


def test_the_scatter_about_a_centre_is_the_same_in_blocks(monkeypatch):
    moments, centre = Moments.of(make_rows("generic", 20, 9, 1)), np.arange(9.0)
    whole = moments.scatter_about(centre)
    monkeypatch.setattr(products, "BLOCK_BYTES", 8 * 9 * 2)
    assert np.array_equal(moments.scatter_about(centre), whole)


@pytest.mark.parametrize("d", [1, 2048, 2049, 4096, 25_088, 10**6])
def test_a_block_is_a_chunk_on_disk(d):
    assert block_rows(d) == max(1, min(d, MAX_CHUNK_BYTES // (8 * d)))
