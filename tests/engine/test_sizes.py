"""Sizes chosen among measured candidates: against networks that are no more than the loss they stand for."""

import copy
import dataclasses
import re
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from notes import Notes
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.sizes.choice import choose_sizes, networks_in_turn, networks_to_measure
from dalr_stream.engine.sizes.forms import SolvedLayer, forms_of
from dalr_stream.engine.sizes.measuring import OneByOne
from dalr_stream.errors import InvalidInputError, NonFiniteError, RankError, UnsupportedLayerError
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.families import Forms
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, Source
from dalr_stream.numerics.sizes.solved_layers import unchanged_layer

M, D = 16, 8


def curve(name, shape, family, decay, reads=()):
    whole = shape.max_rank if family is Family.LOW_RANK else shape.outputs
    top = shape.break_even_rank if family is Family.LOW_RANK else whole - 1
    sizes = np.append(np.arange(1, top + 1), whole)
    return SizedLayer(name, shape, family, sizes, np.append(decay ** np.arange(1, top + 1), 0.0), tuple(reads))


def blocks(decays):
    """For each pair of decays a wide layer with nodes to select, and one that reads it."""
    forms = []
    for number, (low, nodes) in enumerate(decays):
        wide, narrow = LayerShape(M, D), LayerShape(D, M)
        first, second = f"{number}.wide", f"{number}.narrow"
        reads = [Source(first)]
        forms += [
            Forms(
                unchanged_layer(first, wide),
                curve(first, wide, Family.LOW_RANK, low),
                curve(first, wide, Family.SELECTION, nodes),
            ),
            Forms(unchanged_layer(second, narrow, reads=reads), curve(second, narrow, Family.LOW_RANK, low, reads)),
        ]
    return forms


class Adding:
    """A network is its sizes; its distance the sum of what its layers lose, each weighed as the outputs would."""

    def __init__(self, forms, weights):
        self.losses = {(form.name, form.family): form for layer in forms for form in layer.solved}
        self.weights = weights
        self.built = 0

    def networks(self, sizes):
        self.built += 1
        return sizes

    def distance(self, sizes):
        each = (self.weights[name] * self.losses[name, family].loss(k) for name, (family, k) in sizes.items())
        return float(sum(each))


decay = st.tuples(st.floats(0.5, 0.95), st.floats(0.5, 0.95))


@given(st.lists(decay, min_size=1, max_size=3), st.floats(0.35, 0.9), st.data())
def test_where_losses_add_up_the_prediction_is_the_measurement(decays, share, data):
    forms = blocks(decays)
    weights = {layer.name: data.draw(st.floats(0.1, 10.0)) for layer in forms}
    network = Adding(forms, weights)
    choice = choose_sizes(forms, share, OneByOne(network.networks, network.distance))
    assert network.built <= networks_to_measure(sum(len(layer.solved) for layer in forms), 4)
    for candidate in choice.candidates:
        assert candidate.predicted == pytest.approx(candidate.distance, rel=1e-9)
        inputs = {layer.name: layer.unchanged.shape.inputs for layer in forms}
        for name, (family, k) in candidate.sizes.items():
            if family is Family.SELECTION:
                inputs[name.replace("wide", "narrow")] = k
        weights_left = 0
        for layer in forms:
            m, d = layer.unchanged.shape.outputs, inputs[layer.name]
            family, k = candidate.sizes.get(layer.name, (None, 0))
            weights_left += {None: m * d, Family.LOW_RANK: k * (m + d), Family.SELECTION: k * d}[family]
        assert weights_left <= share * 2 * M * D * len(decays) + 1e-9
    distances = [candidate.distance for candidate in choice.candidates]
    assert choice.chosen.distance == min(distances)
    if len({round(d, 12) for d in distances}) > 2:
        assert choice.rank_correlation == pytest.approx(1.0)


def test_a_score_chooses_and_the_distance_among_equals():
    forms = blocks([(0.7, 0.8), (0.9, 0.6)])
    network = Adding(forms, {layer.name: 1.0 for layer in forms})

    def score(sizes):
        return float(all(family is Family.LOW_RANK for family, _ in sizes.values()))

    choice = choose_sizes(forms, 0.5, OneByOne(network.networks, network.distance, score))
    assert choice.chosen.plan == "factor pairs"
    equals = [one.distance for one in choice.candidates if one.score == 1.0]
    assert choice.chosen.distance == min(equals)
    worse = choose_sizes(forms, 0.5, OneByOne(network.networks, network.distance, score), higher=False)
    assert worse.chosen.score == 0.0


def test_a_layer_that_breaks_the_outputs_is_named():
    forms = blocks([(0.7, 0.8)])

    def distance(_):
        raise NonFiniteError("not finite")

    with pytest.raises(NonFiniteError, match=r"layer '0\.wide' at size 2: not finite"):
        choose_sizes(forms, 0.5, OneByOne(lambda sizes: sizes, distance))


def test_a_candidate_that_breaks_the_outputs_is_named():
    forms = blocks([(0.7, 0.8)])

    def distance(sizes):
        if len(sizes) > 1:
            raise NonFiniteError("not finite")
        return 0.5

    with pytest.raises(NonFiniteError, match="factor pairs by what the outputs lose: not finite"):
        choose_sizes(forms, 0.5, OneByOne(lambda sizes: sizes, distance))


def test_a_budget_below_the_smallest_sizes_is_refused():
    forms = blocks([(0.7, 0.8)])
    network = Adding(forms, {layer.name: 1.0 for layer in forms})
    with pytest.raises(InvalidInputError, match=r"smallest sizes \(0.wide 1, 0.narrow 8\) cost 16 and the budget is 3"):
        choose_sizes(forms, 0.01, OneByOne(network.networks, network.distance))


class Gated(nn.Module):
    """A gated feed-forward layer: two layers whose outputs are multiplied, and one that reads the products."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        return self.down(torch.relu(self.gate(x)) * self.up(x))


def test_layers_of_one_group_lose_their_nodes_together():
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(200, 6)
    layers = ds.watch(model, ["gate", "up", "down"], example=x)
    statistics = ds.accumulate(model, [x], layers)
    solved = {}
    for name, layer in statistics.items():
        nodes = None if layer.nodes is None else ds.spectral(layer)
        solved[name] = SolvedLayer(LayerShape(*layer.weight.shape), ds.dalr(layer), layer.inputs, nodes)
    gate, up, down = forms_of(solved, layers.structure)
    assert up.unchanged.follows == "gate"
    assert up.selected is None
    assert gate.selected is not None
    assert down.unchanged.reads == (Source("gate"),)
    assert [form.selected for form in forms_of(solved)] == [None, None, None]

    def networks(sizes):
        forms = {Family.LOW_RANK: lambda one, k: one.factors.at_rank(k)}
        forms[Family.SELECTION] = lambda one, k: one.selection.at_size(k)
        replaced = {name: forms[family](solved[name], k) for name, (family, k) in sizes.items()}
        return ds.compress(model, replaced, example=layers.structure)

    def distance(small):
        with torch.no_grad():
            return float((small(x) - model(x)).square().sum() / model(x).square().sum())

    choice = choose_sizes([gate, up, down], 0.5, OneByOne(networks, distance))
    for candidate in choice.candidates:
        small = networks(candidate.sizes)
        assert sum(p.numel() for p in small.parameters() if p.dim() == 2) <= 0.5 * 3 * 6 * 12
    assert {one.plan for one in choice.candidates} >= {"factor pairs", "selections"}


def test_a_structure_of_another_network_selects_nothing_it_does_not_know():
    model, x = Gated().eval(), torch.randn(20, 6)
    alone = nn.Sequential(nn.Linear(6, 12)).eval()
    layer = ds.accumulate(model, [x], ds.watch(model, ["gate"], example=x))["gate"]
    known = {"0": SolvedLayer(LayerShape(12, 6), ds.dalr(layer), layer.inputs, ds.spectral(layer))}
    (only,) = forms_of(known, Structure.of(alone, x))
    assert only.selected is None


def test_what_is_of_another_network_is_refused():
    torch.manual_seed(0)
    x, (model, other) = torch.randn(200, 6), (Gated().eval() for _ in range(2))
    layers = ds.watch(model, ["gate", "up", "down"])
    statistics, distance = ds.accumulate(model, [x], layers), ds.OutputDistance(model, [x])
    with pytest.raises(InvalidInputError, match="layer 'gate': the statistics have other weights than the network"):
        ds.sizes(other, statistics, distance, 0.5)
    with pytest.raises(InvalidInputError, match="the distance is from the outputs of another network"):
        ds.sizes(model, statistics, ds.OutputDistance(other, [x]), 0.5)
    copied = copy.deepcopy(model)
    assert ds.sizes(copied, statistics, distance, 0.5).choice.candidates
    with torch.no_grad():
        copied.down.weight[0, 0] += 1.0
    with pytest.raises(InvalidInputError, match=r"layer 'down': .* or it was trained since"):
        ds.sizes(copied, statistics, distance, 0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"score": lambda _: None}, InvalidInputError, "factor pairs by .*: the score must be a number, got None"),
        ({"score": lambda _: "0.5"[:0]}, InvalidInputError, "the score must be a number, got ''"),
        ({"score": lambda _: float("nan")}, NonFiniteError, "factor pairs by .*: the score must be a number, got nan"),
        ({"in_turn": lambda _: None}, InvalidInputError, "in_turn must return a network, got None"),
    ],
)
def test_functions_that_give_no_score_or_no_network_are_named(options, error, message):
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(200, 6)
    statistics = ds.accumulate(model, [x], ds.watch(model, ["gate", "up", "down"]))
    with pytest.raises(error, match=message):
        ds.sizes(model, statistics, ds.OutputDistance(model, [x]), 0.5, **options)


def test_a_score_may_be_whatever_is_a_number():
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(200, 6)
    statistics, distance = (
        ds.accumulate(model, [x], ds.watch(model, ["gate", "up", "down"])),
        ds.OutputDistance(model, [x]),
    )
    for score in (torch.tensor(0.5), np.float32(0.5), 1, float("inf")):
        plan = ds.sizes(model, statistics, distance, 0.5, score=lambda _, score=score: score)
        assert plan.choice.chosen.score == float(score)


def test_several_shares_are_a_plan_for_each_and_are_refused_together():
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(200, 6)
    layers = ds.watch(model, ["gate", "up", "down"], example=x)
    statistics, distance = ds.accumulate(model, [x], layers), ds.OutputDistance(model, [x])
    plans = ds.sizes(model, statistics, distance, [0.5, 0.7], structure=layers.structure)
    for share, plan in zip((0.5, 0.7), plans, strict=True):
        alone = ds.sizes(model, statistics, distance, share, structure=layers.structure)
        assert alone.choice.candidates == plan.choice.candidates
    with pytest.raises(InvalidInputError, match="budget: the smallest sizes"):
        ds.sizes(model, statistics, distance, [0.5, 0.01], structure=layers.structure)
    for share in (float("nan"), -0.1, 1.5, "50%", "0.5", True, [0.5, None]):
        shown = re.escape(repr(share[1] if isinstance(share, list) else share))
        with pytest.raises(InvalidInputError, match=rf"share must be a number in 0\.\.1 .* got {shown}"):
            ds.sizes(model, statistics, distance, share, structure=layers.structure)
    for step in (0, 1.5, True):
        with pytest.raises(InvalidInputError, match="what sizes are multiples of must be a whole number of at least 1"):
            ds.sizes(model, statistics, distance, 0.5, structure=layers.structure, multiple_of=step)


def test_where_gradients_are_known_weighted_solutions_and_sizes_by_nats_are_tried_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(200, 8)
    every = ["0", "2", "4"]
    layers = ds.watch(model, every, example=x, gradients=every)
    statistics, distance = ds.accumulate(model, [x], layers), ds.OutputDistance(model, [x])
    plan = ds.sizes(model, statistics, distance, 0.5, structure=layers.structure)
    plans, rules = ({getattr(one, name) for one in plan.choice.candidates} for name in ("plan", "rule"))
    assert {"factor pairs", "factor pairs, weighted by gradients"} <= plans
    assert "nats by gradients" in rules
    plain = ds.sizes(
        model, statistics, distance, 0.5, structure=layers.structure, methods=["dalr_anchored_affine", "spectral"]
    )
    assert not any("weighted" in one.plan for one in plain.choice.candidates)
    assert plan.choice.chosen.distance <= plain.choice.chosen.distance
    assert distance(ds.compress(model, plan.replacements, example=layers.structure)) == pytest.approx(
        plan.choice.chosen.distance, rel=1e-9
    )
    without = ds.watch(model, every, example=x)
    bare = ds.sizes(model, ds.accumulate(model, [x], without), distance, 0.5, structure=without.structure)
    assert not any("nats" in one.rule or "weighted" in one.plan for one in bare.choice.candidates)


class Network:
    """Something that may be weakly referred to."""


def test_networks_are_tried_one_at_a_time():
    forms, alive, most = blocks([(0.5, 0.7), (0.8, 0.6)]), weakref.WeakSet(), []
    sizes_of = {}

    def networks(sizes):
        network = Network()
        alive.add(network)
        most.append(len(alive))
        sizes_of[id(network)] = sizes
        return network

    gaps = Adding(forms, {layer.name: 1.0 for layer in forms})
    choose_sizes(forms, 0.5, OneByOne(networks, lambda network: gaps.distance(sizes_of[id(network)])))
    assert max(most) == 1
    assert len(most) > 8


class Read(Mapping):
    """Layers that are read when they are asked for, as from a store; counts how many are there."""

    def __init__(self, solved):
        self.solved, self.asked, self.there, self.most = solved, [], 0, 0

    def __getitem__(self, name):
        one = self.solved[name]
        factors = dataclasses.replace(one.factors, weight=one.factors.weight.copy())
        weakref.finalize(factors.weight, self._let_go)
        self.there += 1
        self.most = max(self.most, self.there)
        self.asked.append(name)
        return dataclasses.replace(one, factors=factors)

    def _let_go(self):
        self.there -= 1

    def __iter__(self):
        return iter(self.solved)

    def __len__(self):
        return len(self.solved)


def test_layers_that_are_read_when_asked_for_are_asked_once_and_let_go():
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))).eval(), torch.randn(64, 8)
    layers = ds.watch(model, ["*"], example=x)
    statistics = ds.accumulate(model, [x], layers)
    solved = {}
    for name in statistics:
        layer = statistics[name]
        nodes = None if layer.nodes is None else ds.spectral(layer)
        solved[name] = SolvedLayer(LayerShape(8, 8), ds.dalr(layer), layer.inputs, nodes)
    read = Read(solved)
    found, expected = forms_of(read, layers.structure), forms_of(solved, layers.structure)
    assert read.asked == list(solved)
    assert read.most <= 2  # the one before, until the next is there
    for one, other in zip(found, expected, strict=True):
        assert [form.losses.tolist() for form in one.solved] == [form.losses.tolist() for form in other.solved]
        assert one.unchanged.reads == other.unchanged.reads


def test_a_pair_does_not_hold_every_rank():
    factors = ds.truncated_svd(np.random.default_rng(0).normal(size=(6, 9)), None)
    pair = factors.at_rank(2)
    assert not np.shares_memory(pair.up, factors.basis)
    assert not np.shares_memory(pair.down, factors.down)


class Stack(nn.Module):
    """Residual blocks whose wide middles have nodes to lose."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8)) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("target", ["outputs", "stream"])
def test_sizes_for_layers_in_turn_are_chosen_among_networks_that_were_compressed_in_turn(target):
    torch.manual_seed(0)
    model, batches = Stack().eval(), [torch.randn(50, 8) for _ in range(4)]
    names = [f"blocks.{number}.{place}" for number in range(3) for place in (0, 2)]
    layers = ds.watch(model, names, example=batches[0], gradients=names)
    statistics, distance = ds.accumulate(model, batches, layers), ds.OutputDistance(model, batches)
    built = []

    def in_turn(choices):
        built.append(dict(choices))
        return ds.compress_sequentially(model, batches, choices, target=target).network

    plan = ds.sizes(model, statistics, distance, 0.4, layers=names, structure=layers.structure, in_turn=in_turn)
    choice = plan.choice
    assert len(built) == len(choice.candidates) <= networks_in_turn(narrows=True)
    assert distance(in_turn(plan.choices)) == choice.chosen.distance == min(one.distance for one in choice.candidates)
    plain = {(one.rule, one.factored_alone) for one in choice.candidates}
    assert plain == {(one.rule, one.factored_alone) for one in choice.at_once}
    for rule, factored in plain:
        of_rule = [one for one in choice.at_once if (one.rule, one.factored_alone) == (rule, factored)]
        (last,) = (one for one in choice.candidates if (one.rule, one.factored_alone) == (rule, factored))
        assert last.sizes == min(of_rule, key=lambda one: one.distance).sizes
    assert {name: (of.by.family, of.size) for name, of in plan.choices.items()} == choice.chosen.sizes
    assert plan.replacements.keys() == plan.choices.keys()


def test_the_nearest_in_turn_is_kept_though_another_is_nearer_at_once():
    torch.manual_seed(0)
    model, batches = Stack().eval(), [torch.randn(50, 8) for _ in range(4)]
    names = [f"blocks.{number}.{place}" for number in range(3) for place in (0, 2)]
    layers = ds.watch(model, names, example=batches[0])
    statistics, distance = ds.accumulate(model, batches, layers), ds.OutputDistance(model, batches)
    at_once = ds.sizes(model, statistics, distance, 0.4, layers=names).choice.candidates
    assert len(at_once) > 1
    worst, score = at_once[-1], {}

    def in_turn(choices):
        small = ds.compress_sequentially(model, batches, choices).network
        score[small] = float(
            {name: of.size for name, of in choices.items()} == {n: k for n, (_, k) in worst.sizes.items()}
        )
        return small

    plan = ds.sizes(model, statistics, distance, 0.4, layers=names, score=score.__getitem__, in_turn=in_turn)
    assert plan.choice.chosen.sizes == worst.sizes
    assert [one.sizes for one in plan.choice.at_once] == [one.sizes for one in at_once]
    assert all(one.score is None for one in plan.choice.at_once)


@pytest.mark.parametrize("error", [UnsupportedLayerError, RankError])
def test_what_cannot_be_compressed_in_turn_is_left_out_and_said(error):
    torch.manual_seed(0)
    model, batches, notes = Stack().eval(), [torch.randn(50, 8) for _ in range(4)], Notes()
    layers = ds.watch(model, ["blocks.*.*"], example=batches[0])
    statistics, distance = ds.accumulate(model, batches, layers), ds.OutputDistance(model, batches)

    def in_turn(choices, refused=True):
        if any(choice.selects for choice in choices.values()) or not refused:
            raise error("it is not possible")
        return ds.compress_sequentially(model, batches, choices).network

    options = {"structure": layers.structure, "progress": notes}
    plan = ds.sizes(model, statistics, distance, 0.4, in_turn=in_turn, **options)
    assert plan.choice.candidates
    assert all(one.factored_alone for one in plan.choice.candidates)
    assert not all(one.factored_alone for one in plan.choice.at_once)
    assert any("cannot be compressed layer after layer: it is not possible" in line for line in notes.said)
    with pytest.raises(error, match="it is not possible"):
        ds.sizes(model, statistics, distance, 0.4, in_turn=lambda choices: in_turn(choices, refused=False), **options)


def test_nodes_that_turn_out_to_be_needed_are_not_selected():
    """The network's own input is added to them, which nobody can narrow."""
    torch.manual_seed(0)
    model, batches, notes = Stack().eval(), [torch.randn(50, 8) for _ in range(4)], Notes()
    assert "its channels cannot be pruned" in ds.watch(model, ["blocks.0.2"], example=batches[0])[0].unprunable
    structure = Structure.of(model, batches[0])
    layers = with_readers(ds.network.select_layers(model, ["blocks.*.*"]), structure)  # not tried, as in older stores
    statistics, distance = ds.accumulate(model, batches, layers), ds.OutputDistance(model, batches)
    assert layers[1].name == "blocks.0.2"
    assert layers[1].group is not None
    plan = ds.sizes(model, statistics, distance, 0.4, structure=structure, progress=notes)
    assert any(line.startswith("compress: layer 'blocks.0.2': its channels cannot be pruned") for line in notes.said)
    assert plan.choice.chosen.sizes
    for one in plan.choice.candidates:
        assert one.sizes.get("blocks.0.2", (Family.LOW_RANK, 0))[0] is Family.LOW_RANK


def test_where_nothing_gets_smaller_no_layer_has_a_turn():
    model, x = Gated().eval(), torch.randn(200, 6)
    statistics = ds.accumulate(model, [x], ds.watch(model, ["gate", "up"]))
    plan = ds.sizes(model, statistics, ds.OutputDistance(model, [x]), 1.0, in_turn=lambda _: pytest.fail("built"))
    assert (plan.choices, plan.choice.chosen.distance) == ({}, 0.0)
