"""Solutions that are cut to many sizes: the first that fit are kept, the others are read again."""

import numpy as np
import pytest

import dalr_stream as ds
from dalr_stream.numerics.methods import Method
from dalr_stream.workflow.steps.sizes.kept_solutions import KeptSolutions, nbytes

WEIGHT = np.random.default_rng(0).normal(size=(6, 4))


class Store:
    """Counts what is read."""

    def __init__(self):
        self.read = []

    def solutions(self, layer, methods):
        self.read += [(layer, method) for method in methods]
        return {method: ds.truncated_svd(WEIGHT, None) for method in methods}


SIZE = nbytes(ds.truncated_svd(WEIGHT, None))


@pytest.mark.parametrize(("room", "kept"), [(0, 0), (SIZE - 1, 0), (SIZE, 1), (2 * SIZE + 1, 2), (10 * SIZE, 3)])
def test_what_fits_is_read_once_and_the_rest_each_time(room, kept):
    store = Store()
    solution = KeptSolutions(store, room)
    for _ in range(3):
        for layer in "abc":
            assert solution(layer, Method.SVD).max_rank == 4
    assert [sum(name == layer for name, _ in store.read) for layer in "abc"] == [1] * kept + [3] * (3 - kept)


def test_bytes_are_those_of_all_arrays():
    """W 6 x 4, basis 6 x 4, down 4 x 4, center 4, offset 6, objective 5, of double precision."""
    assert SIZE == 8 * (24 + 24 + 16 + 4 + 6 + 5)
    selection = ds.spectral(ds.Moments.of(np.random.default_rng(1).normal(size=(30, 5))))
    assert nbytes(selection) >= 8 * (25 + 5 + 5 + 5)
