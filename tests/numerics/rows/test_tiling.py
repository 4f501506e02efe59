"""Rows in batches become tiles of fixed height, and the rows of each sample are counted."""

import numpy as np
import pytest
from folded import (
    tiles_of,
)
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.rows.tiling import VARYING, RowBatch, Tiler, rows_per_sample, tile_rows
from dalr_stream.numerics.statistics.fold_rule import lane_count


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
        rows_per_sample("fc6", batch_of(4, 10), VARYING)
    assert rows_per_sample("fc6", batch_of(4, 12), VARYING) == VARYING  # without counts, the same number each
    with pytest.raises(InvalidInputError, match="counts must add up to its 5 rows"):
        rows_per_sample("fc6", RowBatch(2, "", batch.rows, {"fc6": np.array([2, 2])}), None)
