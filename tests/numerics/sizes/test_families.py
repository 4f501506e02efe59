"""Which layers are factored and which lose nodes: every division of a few layers, tried one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import within_budget
from dalr_stream.numerics.sizes.families import MOST_TOGETHER, Forms, in_forms, plans
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, Source, as_they_are, cost
from dalr_stream.numerics.sizes.solved_layers import unchanged_layer

LOW, NODES = Family.LOW_RANK, Family.SELECTION


def layer(name, outputs, inputs, *, low=1.0, nodes=None, reads=(), follows=None):
    """A layer whose losses fall in a straight line from `low` for factor pairs and from `nodes` for selections."""
    shape = LayerShape(outputs, inputs)

    def form(family, top, whole, scale):
        sizes = np.append(np.arange(1, top + 1), whole)
        losses = np.append(scale * (1 - np.arange(1, top + 1) / whole), 0.0)
        return SizedLayer(name, shape, family, sizes, losses, tuple(reads))

    top = min(shape.break_even_rank, shape.max_rank - 1)
    return Forms(
        unchanged_layer(name, shape, reads=reads, follows=follows),
        None if low is None else form(LOW, top, shape.max_rank, low),
        None if nodes is None else form(NODES, outputs - 1, outputs, nodes),
    )


def block(name, low, nodes):
    """A wide layer with a nonlinearity after it, and the narrow one that reads it."""
    wide, narrow = f"{name}.wide", f"{name}.narrow"
    return [layer(wide, 16, 8, low=low, nodes=nodes), layer(narrow, 8, 16, low=low, reads=[Source(wide)])]


def test_a_selection_leaves_what_it_narrows_as_it_is_and_the_rest_is_factored():
    layers = [*block("a", 1.0, 1.0), layer("head", 8, 8)]
    found = plans(layers, 0.5)
    assert found["factor pairs"] == (LOW, LOW, LOW)
    assert found["selections"] == (NODES, None, LOW)
    assert found["selections, their readers factored"] == (NODES, LOW, LOW)


def test_each_place_gets_the_family_that_loses_less_there():
    layers = [*block("a", 1.0, 0.1), *block("b", 0.1, 1.0)]
    assert plans(layers, 0.4)["the better family in each place"] == (NODES, None, LOW, LOW)


def test_what_follows_a_selection_is_not_factored():
    gate, up = layer("gate", 16, 8, nodes=0.1), layer("up", 16, 8, follows="gate")
    down = layer("down", 8, 16, reads=[Source("gate")])
    found = plans([gate, up, down], 0.5)
    assert found["selections"] == (NODES, None, None)
    assert found["selections, their readers factored"] == (NODES, None, LOW)


def test_plans_that_are_the_same_are_named_once():
    assert list(plans([layer("a", 8, 8), layer("b", 8, 8)], 0.5)) == ["factor pairs"]
    assert plans([layer("a", 8, 8, low=None)], 0.5) == {"factor pairs": (None,)}


@given(st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)), min_size=1, max_size=3), st.floats(0.3, 0.9))
def test_the_better_family_is_what_trying_every_division_finds(scales, share):
    """Of layers in a row, each of which reads the one before."""
    layers, before = [], None
    for number, (low, nodes) in enumerate(scales):
        reads = [] if before is None else [Source(before)]
        layers.append(layer(f"fc{number}", 12, 12, low=low, nodes=nodes, reads=reads))
        before = f"fc{number}"

    def loss(selected):
        forms = [
            one.selected
            if one.name in selected
            else one.unchanged
            if any(source.layer in selected for source in one.unchanged.reads)
            else one.factored
            for one in layers
        ]
        try:
            sizes = within_budget(forms, share * float(cost(forms, as_they_are(forms))))
        except InvalidInputError:
            return np.inf
        return sum(form.loss(sizes[form.name]) for form in forms)

    names = [one.name for one in layers]
    subsets = itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(len(names) + 1))
    best = min(map(loss, map(set, subsets)))
    plan = plans(layers, share).get("the better family in each place")
    if plan is None:  # it is one of the plain ones
        assert best == pytest.approx(min(loss(set()), loss(set(names))))
    else:
        selected = {one.name for one, family in zip(layers, plan, strict=True) if family is NODES}
        assert loss(selected) == pytest.approx(best)


def test_many_selections_that_touch_one_another_are_taken_all_or_none():
    layers, before = [], None
    for number in range(MOST_TOGETHER + 2):
        reads = [] if before is None else [Source(before)]
        layers.append(layer(f"fc{number}", 12, 12, low=1.0, nodes=0.01, reads=reads))
        before = f"fc{number}"
    assert set(plans(layers, 0.5)) == {"factor pairs", "selections"}


def test_a_form_that_was_not_solved_is_refused():
    with pytest.raises(InvalidInputError, match="layer 'a': nothing of the family selection was solved"):
        in_forms([layer("a", 8, 8)], (NODES,))
