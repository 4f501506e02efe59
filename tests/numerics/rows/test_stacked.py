"""Rows in several arrays read like one array of the same rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.numerics.rows.stacked import StackedRows, stacked

heights = st.lists(st.sampled_from([0, 1, 3, 64, 200]), min_size=1, max_size=5).filter(any)


def parts_of(sizes):
    rows = np.random.default_rng(0).normal(size=(sum(sizes), 6)).astype(np.float32)
    return rows, np.split(rows, np.cumsum(sizes)[:-1])


@given(heights, st.integers(0, 300), st.integers(1, 300), st.integers(0, 5))
def test_slices_and_rows_are_those_of_the_joined_array(sizes, first, height, left):
    joined, parts = parts_of(sizes)
    rows, columns = StackedRows(parts), slice(left, 6)
    first %= len(joined)
    assert rows.shape == joined.shape
    assert np.array_equal(rows[first : first + height, columns], joined[first : first + height, columns])
    assert np.array_equal(rows[first, columns], joined[first, columns])
    assert np.array_equal(np.asarray(rows), joined)


@given(heights, st.data())
def test_ascending_numbers_are_those_of_the_joined_array(sizes, data):
    joined, parts = parts_of(sizes)
    numbers = data.draw(st.sets(st.integers(0, len(joined) - 1), min_size=1))
    chosen = np.array(sorted(numbers))
    assert np.array_equal(StackedRows(parts)[chosen, slice(1, 4)], joined[chosen, 1:4])


def test_rows_within_one_array_are_not_copied():
    _, parts = parts_of([128, 128])
    assert np.shares_memory(StackedRows(parts)[130:250, slice(0, 6)], parts[1])
    assert isinstance(stacked(parts), StackedRows)
    assert stacked(parts[:1]) is parts[0]


@pytest.mark.parametrize("parts", [[np.zeros((1, 2))] * 9, [np.zeros((99, 2)), np.zeros((99, 2), np.float32)]])
def test_short_arrays_and_those_of_several_kinds_are_joined(parts):
    assert np.array_equal(stacked(parts), np.concatenate(parts))
    assert isinstance(stacked(parts), np.ndarray)
