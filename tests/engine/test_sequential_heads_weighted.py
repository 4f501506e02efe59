"""Weighted heads layer after layer, against a twin that projects keys and values where they are given, and by laws."""

import copy
import dataclasses
from functools import partial

import numpy as np
import oracles
import pytest
import torch
from attentions import Attention, Masked
from rotary_attentions import Rotary
from scipy.linalg import block_diag
from test_sequential_heads import ALL, FIRST, RIDGE, SECOND, batches, far, given, heads, network, rows_of, sequence
from test_sequential_heads import stream_of as before_it_is_added

import dalr_stream as ds
from dalr_stream.engine.sequential.pass_plan import PassesOf, plan_passes
from dalr_stream.engine.sequential.passes import sequential_passes
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics import head_factors
from dalr_stream.numerics.methods import Method
from dalr_stream.streaming.cross_solving_cost import TurnedLayer, pass_solving_bytes

GAMMA = 1e-2
"""The default ridge of the gradients."""
FELT = ["*.k", "*.o"]


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def statistics_of(model):
    return ds.accumulate(model, batches(), ds.watch(model, ["*.attention.*"], gradients=FELT), folding=ALL)


def weighted(size, statistics, **options):
    return heads(size, **{"method": "heads_weighted", "attention": statistics, "restore_ridge": RIDGE, **options})


# --- a twin of full width --------------------------------------------------------------------------------------------


def felt(statistics, name):
    gradients = statistics[name].gradients.second_moment
    return gradients + GAMMA * np.trace(gradients) / len(gradients) * np.eye(len(gradients))


def by_head(matrix, size=4):
    """The blocks on the diagonal."""
    return [matrix[first : first + size, first : first + size] for first in range(0, len(matrix), size)]


def projected(module, projections):
    """Let a layer give what is left of it."""
    whole = torch.from_numpy(block_diag(*projections))
    module.register_forward_hook(lambda _, __, out: out @ whole.mT)


def twin(model, sizes, statistics, *, stream=False):
    """Keys and values as wide as they were, and of fewer dimensions; what reads them solved on all rows."""
    small = copy.deepcopy(model)
    for name, size in sizes.items():
        attention = small.get_submodule(name.rpartition(".")[0])
        keys, values = name.replace(".o", ".k"), name.replace(".o", ".v")
        weight, z = attention.o.weight.detach().numpy(), rows_of(small, name)[0]
        scores = zip(by_head(felt(statistics, keys)), by_head(np.cov(rows_of(small, keys)[1].T)), strict=True)
        of_keys = [oracles.head_projection(*pair, size) for pair in scores]
        readers, read = (by_head(one) for one in (weight.T @ felt(statistics, name) @ weight, np.cov(z.T)))
        shared = len(readers) // len(of_keys)
        summed = [[sum(one[g : g + shared]) for g in range(0, len(one), shared)] for one in (readers, read)]
        of_values = [oracles.head_projection(*pair, size) for pair in zip(*summed, strict=True)]
        projected(small.get_submodule(keys), of_keys)
        projected(small.get_submodule(values), of_values)
        target = rows_of(model, name)[1]
        if stream:
            target = target + before_it_is_added(model, name) - before_it_is_added(small, name)
        z = rows_of(small, name)[0]
        solved = np.linalg.lstsq(z - z.mean(0), target - target.mean(0), rcond=1e-8)[0].T
        with torch.no_grad():
            attention.o.weight.copy_(torch.from_numpy(solved))
            attention.o.bias.copy_(torch.from_numpy(target.mean(0) - solved @ z.mean(0)))
    return small


@pytest.mark.parametrize(("kind", "target"), [(Attention, "outputs"), (Masked, "stream")])
def test_it_is_what_the_twin_makes_of_all_rows(kind, target):
    model, sizes = network(kind), {FIRST: 2, SECOND: 3}
    statistics = statistics_of(model)
    choices = {name: weighted(size, statistics, restore_ridge=1e-9) for name, size in sizes.items()}
    result = sequence(model, choices, target=target)
    expected = twin(model, sizes, statistics, stream=target == "stream")
    assert far(given(result.network), given(expected)) < 1e-5
    plain = sequence(model, {name: heads(size, restore_ridge=1e-9) for name, size in sizes.items()}, target=target)
    assert far(given(result.network), given(plain.network)) > 1e-2


# --- laws ------------------------------------------------------------------------------------------------------------


def test_gradients_that_feel_all_alike_choose_as_plain_heads_do():
    """E[g g'] of the keys is that of the queries as they are by then, and of the outputs I."""
    model = network(groups=4)
    by_then = sequence(model, {FIRST: heads(2)}).network
    known = statistics_of(model)
    rows = {SECOND.replace(".o", ".k"): rows_of(by_then, SECOND.replace(".o", ".q"))[1], SECOND: np.eye(12) * 12**0.5}
    attention = {name: dataclasses.replace(known[name], gradients=ds.Moments.of(one)) for name, one in rows.items()}
    alike, plain = (
        sequence(model, {FIRST: heads(2), SECOND: second})
        for second in (weighted(2, attention, gradient_ridge=0.0), heads(2))
    )
    assert far(given(alike.network), given(plain.network)) < 1e-6
    assert alike.layers[SECOND].error == pytest.approx(plain.layers[SECOND].error)


@pytest.mark.parametrize("kind", [Attention, Rotary])
def test_the_first_attention_gets_the_heads_that_it_gets_all_at_once(kind):
    model = network(kind)
    statistics, layout = statistics_of(model), ds.network.Structure.of(model, batches()[0]).heads_of(FIRST)
    result = sequence(model, {FIRST: weighted(2, statistics)})
    at_once = head_factors(statistics, layout, weighted=True, ridge=RIDGE).at_size(2)
    narrow = ds.compress(model, {FIRST: at_once}, example=batches()[0])
    for part in ("q", "k", "v"):
        name = FIRST.replace(".o", f".{part}")
        assert torch.equal(result.network.get_submodule(name).weight, narrow.get_submodule(name).weight)
    assert result.layers[FIRST].error < result.layers[FIRST].inherited
    assert "narrower heads (weighted), 2: error" in str(result.layers[FIRST])


def test_at_full_size_nothing_changes():
    model = network()
    result = sequence(model, {FIRST: weighted(4, statistics_of(model))})
    assert far(given(result.network), given(model)) < 1e-6


def test_a_sequence_resumes_and_what_layers_read_serves_other_weights(tmp_path):
    model = network()
    choices = dict.fromkeys((FIRST, SECOND), weighted(2, statistics_of(model)))
    sequence(model, {FIRST: heads(2)}, store=tmp_path)
    states = list(sequential_passes(model, batches(), choices, folding=ALL, store=tmp_path))
    for state in states[:2]:
        *_, last = sequential_passes(model, batches(), choices, folding=ALL, begun=state)
        assert torch.equal(given(last.network), given(states[-1].network))


def test_sizes_are_chosen_among_networks_with_weighted_heads_in_turn():
    model, example = network(), batches()[0]
    layers = ds.watch(model, ["*.attention.*"], example=example, heads=True, gradients=FELT)
    statistics, distance = ds.accumulate(model, batches(), layers, folding=ALL), ds.OutputDistance(model, batches())

    def in_turn(choices):
        return sequence(model, choices).network

    options = {"structure": layers.structure, "methods": ["heads_weighted"], "in_turn": in_turn}
    plan = ds.sizes(model, statistics, distance, 0.5, **options)
    assert {choice.by for choice in plan.choices.values()} == {Method.HEADS_WEIGHTED}
    assert distance(in_turn(plan.choices)) == plan.choice.chosen.distance


@pytest.mark.parametrize(
    ("plain", "weighted"), [("dalr_anchored_affine", "dalr_weighted_affine"), ("spectral", "spectral_weighted")]
)
def test_gradients_are_counted_of_factors_and_selections(plain, weighted):
    layer = partial(TurnedLayer, "up", 20, 12, readers=(20,))
    assert pass_solving_bytes([layer((Method(weighted),))], 1) > pass_solving_bytes([layer((Method(plain),))], 1)


def test_gradients_are_counted_of_heads():
    model = network()
    layouts = {FIRST: ds.network.Structure.of(model, batches()[0]).heads_of(FIRST)}
    plain, felt_too = (
        plan_passes(PassesOf(model, [[FIRST]], {FIRST: (method,)}, attentions=layouts), ALL)
        for method in (Method.HEADS, Method.HEADS_WEIGHTED)
    )
    assert felt_too.passes[0].solving_bytes > plain.passes[0].solving_bytes
    assert felt_too.moments_bytes == plain.moments_bytes  # those of gradients are there already


KEYS = FIRST.replace(".o", ".k")


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (
            lambda _: {},
            f"layer '{FIRST}': heads_weighted needs the gradients of '{KEYS}', which is not among no layers",
        ),
        (lambda known: {FIRST: known[FIRST]}, f"'{KEYS}', which is not among {FIRST}: give the statistics"),
        (
            lambda known: {**known, KEYS: dataclasses.replace(known[KEYS], gradients=None)},
            f"layer '{KEYS}': the moments of its gradients are needed but not known",
        ),
    ],
)
def test_missing_gradients_are_named_before_any_pass(attention, message):
    model = network()
    choice = weighted(2, attention(statistics_of(model)))
    states = sequential_passes(model, batches(), {FIRST: choice}, folding=ALL)
    with pytest.raises(InvalidInputError, match=message):
        next(states)


def test_without_the_attention_it_is_refused_at_once():
    layer = ds.Layer("o", np.eye(2), None)
    with pytest.raises(InvalidInputError, match=r"heads_weighted weighs errors .* attention=statistics\)"):
        heads(2, method="heads_weighted", layer=layer)
