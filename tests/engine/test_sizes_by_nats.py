"""The smallest sizes that keep a share of what the loss feels, or a score: against a scan of every way and budget."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from notes import Notes

from dalr_stream.engine.sizes.by_nats import (
    BY_RULE,
    STEPS,
    felt_menus,
    networks_at_most,
    smallest_by_nats,
    smallest_within,
)
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.sizes.families import Forms
from dalr_stream.numerics.sizes.nats import by_nats, forms_in_nats
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, Source, as_they_are, cost
from dalr_stream.numerics.sizes.solved_layers import unchanged_layer

M, D = 16, 8


class Named:
    """Solutions that are no more than what they are asked for."""

    def method(self, layer, family):  # noqa: ARG002  # protocol
        return Method.SPECTRAL if family is Family.SELECTION else Method.SVD

    def at_size(self, layer, family, size):  # noqa: ARG002  # protocol
        return family, size


def scored_whole(build, score):
    """Build each network of a menu, and score it."""
    return lambda menu, sizes: score(build(menu.replacements(sizes)))


def curve(name, shape, family, decay, at_stake, reads=()):
    top = shape.break_even_rank if family is Family.LOW_RANK else shape.outputs - 1
    whole = shape.max_rank if family is Family.LOW_RANK else shape.outputs
    sizes, left = np.append(np.arange(1, top + 1), whole), decay ** np.arange(1, top + 1)
    losses = np.append(np.sqrt(left), 0.0)
    nats = np.append(at_stake * left, 0.0)
    return SizedLayer(name, shape, family, sizes, losses, tuple(reads), nats=nats, at_stake=at_stake)


def blocks(drawn, *, selects=True):
    """For each (decay, decay, at stake) a wide layer with nodes to select, and one that reads it."""
    forms = []
    for number, (low, nodes, at_stake) in enumerate(drawn):
        wide, narrow = LayerShape(M, D), LayerShape(D, M)
        first, second = f"{number}.wide", f"{number}.narrow"
        reads = [Source(first)]
        selection = curve(first, wide, Family.SELECTION, nodes, at_stake) if selects else None
        forms += [
            Forms(unchanged_layer(first, wide), curve(first, wide, Family.LOW_RANK, low, at_stake), selection),
            Forms(
                unchanged_layer(second, narrow, reads=reads),
                curve(second, narrow, Family.LOW_RANK, low, at_stake, reads),
            ),
        ]
    return forms


class Score:
    """What is left of 1 after hidden weights of what each layer loses: it falls with any one size."""

    def __init__(self, menus, weights):
        self.curves = {(form.name, form.family): form for menu in menus for of in menu.forms for form in of.solved}
        self.weights = weights
        self.asked = 0

    def __call__(self, sizes):
        self.asked += 1
        lost = (self.weights[name] * self.curves[name, of].loss(size) for name, (of, size) in sizes.items())
        return 1.0 - float(sum(lost))


drawn = st.tuples(st.floats(0.3, 0.9), st.floats(0.3, 0.9), st.floats(0.01, 10.0))


@given(st.lists(drawn, min_size=1, max_size=2), st.floats(0.0, 1.2), st.data())
def test_what_is_kept_keeps_the_score_and_is_smaller_than_the_network(layers, drop, data):
    menus = [Menu(Named(), blocks(layers))]
    score = Score(menus, {of.name: data.draw(st.floats(0.01, 1.0)) for of in menus[0].forms})
    found = smallest_within(menus, scored_whole(dict, score), lambda value: value >= 1.0 - drop)
    assert len(found.attempts) == score.asked <= networks_at_most(1, 4)[1]
    good = [one for one in found.attempts if one.score >= 1.0 - drop]
    assert [one for one in found.attempts if one.good] == good
    if found.chosen is None:
        assert not good
        return
    assert found.chosen.score >= 1.0 - drop
    assert found.chosen.left == min(one.left for one in good) < 1.0
    for one in found.attempts:
        curves = {(form.name, form.family): form for of in menus[0].forms for form in of.solved}
        each = (
            curves[name, of].nats[np.searchsorted(curves[name, of].sizes, k)] for name, (of, k) in one.sizes.items()
        )
        assert one.predicted == pytest.approx(sum(each))


@pytest.mark.parametrize("least", [0.2, 0.4, 0.65, 0.9])
def test_a_score_that_is_the_networks_size_is_kept_to_a_rank(least):
    """The score then falls with every budget, and the smallest network is known."""
    menu = Menu(Named(), blocks([(0.5, 0.6, 1.0), (0.7, 0.4, 0.5)], selects=False))
    whole = 4 * M * D

    def score(sizes):
        return 1.0 - sum(M * D - size * (M + D) for _, size in sizes.values()) / whole

    found = smallest_within([menu], scored_whole(dict, score), lambda value: value >= least)
    assert found.chosen.score == pytest.approx(found.chosen.left)
    assert least <= found.chosen.left <= least + (M + D + 1) / whole
    assert len(found.attempts) <= networks_at_most(1, 1)[0]


class Marked(Named):
    """Solutions that say whose they are."""

    def __init__(self, loss):
        self.loss = loss

    def at_size(self, layer, family, size):  # noqa: ARG002  # protocol
        return self.loss * (1.0 - size / D)


def test_a_better_menu_is_found_after_a_worse_one_for_a_few_more_networks():
    forms, notes = blocks([(0.6, 0.6, 1.0)]), Notes()
    worse, better = Menu(Marked(0.5), forms), Menu(Marked(0.3), forms, ", better")

    def score(losses):
        return 1.0 - sum(losses.values())

    alone = smallest_within([worse], scored_whole(dict, score), lambda value: value >= 0.6, progress=notes)
    both = smallest_within([worse, better], scored_whole(dict, score), lambda value: value >= 0.6)
    assert both.chosen.left < alone.chosen.left
    assert both.chosen.menu is better
    assert both.chosen.plan.endswith(", better")
    assert len(notes.said) == len(alone.attempts) < STEPS.bit_length() + 4 * len(BY_RULE)
    assert all("nats predicted" in text for text in notes.said)


def test_nothing_good_enough_leaves_the_network_as_it_is():
    menus = [Menu(Named(), blocks([(0.5, 0.5, 1.0)]))]
    found = smallest_within(menus, scored_whole(dict, lambda _: -1.0), lambda value: value >= 0.0)
    assert found.chosen is None
    assert found.attempts


def test_nodes_that_cannot_go_are_said_and_left():
    notes, menus = Notes(), [Menu(Named(), blocks([(0.5, 0.2, 1.0)]))]

    def build(sizes):
        if any(family is Family.SELECTION for family, _ in sizes.values()):
            raise UnsupportedLayerError("layer '0.wide': its nodes are added to the input")
        return sizes

    found = smallest_within(
        menus, scored_whole(build, Score(menus, {"0.wide": 1, "0.narrow": 1})), lambda v: v > 0.5, progress=notes
    )
    assert found.chosen.plan == "factor pairs"
    assert any("search: selections: layer '0.wide': its nodes are added" in text for text in notes.said)


def without_nats(form):
    return dataclasses.replace(form, nats=None, at_stake=None)


def test_only_forms_of_which_nats_are_known_count_and_layers_without_any_end_the_search():
    forms = blocks([(0.5, 0.2, 1.0)])
    half = [Forms(of.unchanged, of.factored, of.selected and without_nats(of.selected)) for of in forms]
    assert [bool(of.selected) for of in forms_in_nats(half)] == [False, False]
    assert {
        one.plan for one in smallest_within([Menu(Named(), half)], scored_whole(dict, lambda _: 1.0), bool).attempts
    } == {"factor pairs"}
    bare = [Forms(of.unchanged, without_nats(of.factored), of.selected and without_nats(of.selected)) for of in forms]
    menus = [Menu(Named(), forms), Menu(Named(), half), Menu(Named(), bare)]
    assert felt_menus(menus) == menus[:2]


@given(st.lists(drawn, min_size=1, max_size=2), st.floats(0.2, 0.999))
def test_a_share_is_kept_by_the_plan_of_least_weight(layers, share):
    menus = [Menu(Named(), blocks(layers)), Menu(Named(), blocks([(0.9, 0.9, at) for *_, at in layers]))]
    menu, sizes = smallest_by_nats(menus, share)
    at_stake = sum(2 * at for *_, at in layers)
    curves = {(form.name, form.family): form for of in menu.forms for form in of.solved}
    lost = sum(curves[name, of].nats[np.searchsorted(curves[name, of].sizes, k)] for name, (of, k) in sizes.items())
    assert lost <= (1 - share) * at_stake * (1 + 1e-9) + 1e-9
    factored = [of.factored for of in menus[0].forms]
    plain = by_nats(factored, share)
    whole = {**as_they_are([of.unchanged for of in menu.forms]), **{name: k for name, (_, k) in sizes.items()}}
    forms = [curves[of.name, sizes[of.name][0]] if of.name in sizes else of.unchanged for of in menu.forms]
    assert float(cost(forms, whole)) <= float(cost(factored, plain)) + 1e-9
