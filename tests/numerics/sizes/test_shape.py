"""Parameter counts against the paper's one check, and against layers that are counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.numerics.sizes.shape import LayerShape

shapes = st.builds(LayerShape, st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))


def size(*arrays):
    return sum(array.size for array in arrays)


def test_rank_4_at_birds_fc7_buys_198_nodes():
    """MoMaSP, section 5.2: both layers counted."""
    assert LayerShape(4096, 4096, 200).equal_parameters(4) == 198


@given(shapes, st.data())
def test_counts_are_those_of_the_arrays(shape, data):
    m, d, following = shape.outputs, shape.inputs, shape.next_outputs
    k = data.draw(st.integers(1, shape.max_rank))
    weight, after = np.empty((m, d)), np.empty((following, m))
    down, up = np.empty((k, d)), np.empty((m, k))
    assert shape.parameters == size(weight)
    assert shape.pair_parameters == size(weight, after)
    assert shape.factor_parameters(k) == size(down, up)
    assert shape.factor_pair_parameters(k) == size(down, up, after)
    assert shape.selection_pair_parameters(k) == size(weight[:k], after[:, :k])
    assert shape.max_rank == np.linalg.matrix_rank(np.eye(m, d))


@given(shapes)
def test_break_even_is_the_last_rank_that_adds_nothing(shape):
    k = shape.break_even_rank
    assert shape.factor_parameters(k) <= shape.parameters < shape.factor_parameters(k + 1)


@given(shapes, st.data())
def test_equal_parameters_is_the_largest_selection_within_the_factors_budget(shape, data):
    k = data.draw(st.integers(1, shape.max_rank))
    kept = shape.equal_parameters(k)
    assert 1 <= kept <= shape.outputs
    budget = shape.factor_pair_parameters(k)
    assert shape.selection_pair_parameters(kept) <= budget or kept == 1
    assert shape.selection_pair_parameters(kept + 1) > budget or kept == shape.outputs


@given(shapes)
def test_a_higher_rank_never_buys_fewer_nodes(shape):
    kept = [shape.equal_parameters(k) for k in range(1, shape.max_rank + 1)]
    assert kept == sorted(kept)
