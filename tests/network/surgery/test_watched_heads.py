"""Attentions among the layers to watch, weighed by `sizes` beside factors and selections: plain ones and the zoo's."""

import pytest
import torch
from attentions import Attention, Rotary, Written, block, tokens
from test_narrowed_heads import NAME, far, given, last_state, of_transformers

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family

LAYERS = ("attention.q", "attention.k", "attention.v")


def watched(network, patterns=("*",), **options):
    layers = ds.watch(network, patterns, example=tokens(), heads=True, **options)
    return layers, {layer.name: layer for layer in layers if layer.side is ds.numerics.Side.INPUTS}


def test_the_output_layer_has_the_heads_and_others_the_reason_why_they_have_none():
    _, found = watched(block(Attention))
    assert found[NAME].heads == ds.numerics.HeadLayout(*LAYERS, NAME, heads=4, groups=2, size=4)
    assert all(f"belongs to the attention of '{NAME}'" in found[name].no_heads for name in LAYERS)
    assert "cannot be narrowed" in found["up"].no_heads
    assert not found[NAME].no_heads


@pytest.mark.parametrize(
    ("kind", "patterns", "reason"),
    [
        (Rotary, ("*",), "enter through their inner products alone"),
        (Written, ("*",), "have their size written into them"),
        (Attention, ("*.q", "*.v", "*.o"), "attention.k are not among those to compress: add them"),
    ],
)
def test_heads_that_cannot_get_narrower_are_left_out_before_anything_is_recorded(kind, patterns, reason):
    layers, found = watched(block(kind), patterns)
    assert found[NAME].heads is None
    assert reason in found[NAME].no_heads
    statistics = ds.accumulate(block(kind), [tokens()], ds.watch(block(kind), patterns))
    distance = ds.OutputDistance(block(kind), [tokens()])
    with pytest.raises(InvalidInputError, match="'heads' is among the methods, and no attention is known"):
        ds.sizes(block(kind), statistics, distance, 0.5, structure=layers.structure, methods=["heads"])


def test_without_an_example_nothing_is_found():
    with pytest.raises(InvalidInputError, match="shows when a batch goes through: give example="):
        ds.watch(block(Attention), ["*"], heads=True)


def plan_of(network, share, methods=(), **options):
    layers, _ = watched(network, **options)
    statistics = ds.accumulate(network, [tokens()], layers)
    distance = ds.OutputDistance(network, [tokens()])
    plan = ds.sizes(network, statistics, distance, share, structure=layers.structure, methods=methods)
    return plan, ds.compress(network, plan.replacements, example=layers.structure), statistics


def weights(network, names):
    parts = (network.get_submodule(name).parameters() for name in names)
    return sum(parameter.numel() for part in parts for parameter in part if parameter.dim() == 2)


@pytest.mark.parametrize("options", [{}, {"gradients": ["*"]}])
def test_heads_are_weighed_beside_factors_and_selections(options):
    network = block(Attention)
    plan, small, statistics = plan_of(network, 0.5, **options)
    plans = {one.plan.removesuffix(", weighted by gradients") for one in plan.choice.candidates}
    assert {"factor pairs", "heads", "heads and selections"} <= plans
    assert weights(small, statistics) <= 0.5 * weights(network, statistics)
    assert far(given(small), given(network)) < 0.5
    assert any(one.rule == "nats by gradients" for one in plan.choice.candidates) == bool(options)


def test_heads_alone_have_one_size_for_what_is_to_be_left():
    network = block(Attention)
    plan, small, _ = plan_of(network, 0.5, ["heads"], patterns=["attention.*"])
    assert plan.choice.chosen.sizes == {NAME: (Family.HEADS, 2)}
    assert plan.choices[NAME].size == small.attention.head_dim == 2
    in_turn = ds.compress_sequentially(network, [tokens()], plan.choices).network
    assert in_turn.attention.head_dim == 2


def test_one_layer_cannot_be_replaced_twice():
    network = block(Attention)
    plan, _, statistics = plan_of(network, 0.5, ["heads"], patterns=["attention.*"])
    pair = ds.dalr(statistics["attention.q"]).at_rank(2)
    with pytest.raises(InvalidInputError, match=r"'attention\.q': belongs to the attention of 'attention\.o'"):
        ds.compress(network, {**plan.replacements, "attention.q": pair}, example=tokens())


@pytest.mark.parametrize("name", ["bert", "distilbert", "t5", "vit", "bart", "gpt2", "llama"])
def test_attentions_of_transformers_are_found_among_all_layers(name):
    model, batch, outputs = of_transformers(name)
    layers = ds.watch(model, [torch.nn.Linear] if name != "gpt2" else ["h.*"], example=batch, heads=True)
    heads = {layer.name for layer in layers if layer.heads is not None}
    if name == "gpt2":  # fused
        assert not heads
        return
    assert set(outputs) <= heads
    assert len(heads) == (3 if name == "bart" else 2)
    statistics = ds.accumulate(model, [batch], layers)
    shape = {one: statistics.watched[one].heads for one in heads}
    records = {one: ds.numerics.head_factors(statistics, layout).at_size(6) for one, layout in shape.items()}
    small = ds.compress(model, records, example=layers.structure)
    assert far(last_state(small, batch), last_state(model, batch)) < 0.3
