"""Records merge in a fixed pairwise tree, holding few of them at once."""

import numpy as np
import pytest

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.moments import Moments


def test_lanes_merge_in_a_pairwise_tree():
    rng = np.random.default_rng(0)
    parts = [
        SplitMoments(Moments.of(rng.normal(size=(5, 3))), Moments.of(rng.normal(size=(k, 3)))) for k in (1, 0, 4, 2, 3)
    ]
    a, b, c, d, e = parts
    expected = ((a + b) + (c + d)) + e
    found = merge_all(parts)
    assert found.training.same_bits(expected.training)
    assert found.heldout.same_bits(expected.heldout)
    with pytest.raises(InvalidInputError, match="at least one record"):
        merge_all([])


class Leaf:
    """Stands for a record: its sum shows the tree, and it knows how many of its kind are alive."""

    alive = most = 0

    def __init__(self, tree):
        self.tree = tree
        Leaf.alive += 1
        Leaf.most = max(Leaf.most, Leaf.alive)

    def __del__(self):
        Leaf.alive -= 1

    def __add__(self, other):
        return Leaf((self.tree, other.tree))


@pytest.mark.parametrize("count", [*range(1, 20), 31, 32, 33, 63, 100])
def test_records_made_on_the_way_take_the_same_tree_and_little_memory(count):
    level = list(range(count))
    while len(level) > 1:
        level = [tuple(level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    Leaf.alive = Leaf.most = 0
    assert merge_all(Leaf(number) for number in range(count)).tree == level[0]
    assert Leaf.most <= np.log2(count) + 3  # with the sum that is being made
