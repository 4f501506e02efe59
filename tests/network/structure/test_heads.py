"""Attentions are found by what a batch shows, and what is none is refused with the reason."""

import pytest
import torch
from attentions import (
    Attention,
    ByCount,
    ByWidth,
    FixedScale,
    Fused,
    Interleaved,
    JoinedOtherwise,
    KeysCalledTwice,
    Masked,
    Normalised,
    QueriesReadBesides,
    Rotary,
    SmallerValues,
    Tiled,
    Unscaled,
    ValuesReadBesides,
    Written,
    block,
    tokens,
)

import dalr_stream as ds
from dalr_stream.errors import LayerNotFoundError, UnsupportedLayerError

NAME = "attention.o"
INNER = "enter through their inner products alone"
WAYS = "are read by other ways"


def found(network, name=NAME, batch=None):
    return ds.network.Structure.of(network, tokens() if batch is None else batch).heads_of(name)


@pytest.mark.parametrize("kind", [Attention, FixedScale, Unscaled, Masked, ByCount, ByWidth, Written])
@pytest.mark.parametrize("bias", [True, False])
def test_four_layers_and_their_heads(kind, bias):
    layout = found(block(kind, bias=bias))
    assert layout.layers == ("attention.q", "attention.k", "attention.v", NAME)
    assert (layout.heads, layout.groups, layout.size) == (4, 2, 4)


@pytest.mark.parametrize(("heads", "groups", "size"), [(1, 1, 4), (3, 1, 1), (4, 4, 3), (6, 3, 2)])
def test_any_number_of_heads(heads, groups, size):
    layout = found(block(Attention, heads=heads, groups=groups, size=size))
    assert (layout.heads, layout.groups, layout.size) == (heads, groups, size)


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 30.0])
def test_weights_that_hardly_attend_to_anything_hide_nothing(scale):
    for kind, refused in ((Attention, False), (Rotary, True), (Normalised, True)):
        network = block(kind)
        with torch.no_grad():
            for layer in (network.attention.q, network.attention.k):
                layer.weight *= scale
                layer.bias *= scale
        if not refused:
            assert found(network).size == 4
            continue
        with pytest.raises(UnsupportedLayerError, match=INNER):
            found(network)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Rotary, INNER),
        (Normalised, INNER),
        (Interleaved, WAYS),
        (JoinedOtherwise, "lie in no regular order"),
        (Tiled, WAYS),
        (SmallerValues, "must have heads of one size"),
        (Fused, "'attention.qkv' before it where queries, keys and values take three layers"),
        (KeysCalledTwice, "'attention.k' is called 2 times"),
        (QueriesReadBesides, WAYS),
        (ValuesReadBesides, WAYS),
    ],
)
def test_what_is_another_kind_of_attention_is_refused_with_the_reason(kind, reason):
    with pytest.raises(
        UnsupportedLayerError, match=rf"layer 'attention\.o': the heads .* cannot be narrowed.*{reason}"
    ):
        found(block(kind))


def test_an_output_layer_of_zeros_hides_nothing():
    for kind, refused in ((Attention, False), (Tiled, True), (Rotary, True)):
        network = block(kind)
        with torch.no_grad():
            network.attention.o.weight.zero_()
        if refused:
            with pytest.raises(UnsupportedLayerError):
                found(network)
        else:
            assert found(network).heads == 4


@pytest.mark.parametrize("name", ["up", "down"])
def test_layers_behind_no_attention(name):
    with pytest.raises(UnsupportedLayerError, match=f"layer '{name}': the heads of its attention cannot be narrowed"):
        found(block(Attention), name)


def test_a_layer_that_is_not_there_or_coarse_or_shared():
    network = block(Attention)
    with pytest.raises(LayerNotFoundError, match=r"attention\.oo"):
        found(network, "attention.oo")
    with pytest.raises(UnsupportedLayerError, match="too coarse for the proof: make them float32"):
        found(network.bfloat16(), batch=tokens().bfloat16())
    tied = block(Attention, groups=4)
    tied.attention.k.weight = tied.attention.v.weight
    with pytest.raises(UnsupportedLayerError, match="is shared with"):
        found(tied)


def test_one_token_attends_to_itself():
    with pytest.raises(UnsupportedLayerError, match=INNER):
        found(block(Attention), batch=tokens(length=1))


def test_the_network_and_what_it_answers_are_left_alone():
    network = block(Attention)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    structure = ds.network.Structure.of(network, tokens())
    assert structure.heads_of(NAME) is structure.heads_of(NAME)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
