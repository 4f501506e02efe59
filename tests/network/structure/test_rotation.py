"""What positions are rotated into is found by what a batch shows, whatever the tables are, and others are refused."""

import pytest
import torch
from attentions import block, tokens
from rotary_attentions import (
    ByPairs,
    Cached,
    CachedNeighbours,
    Complex,
    Neighbours,
    Normalised,
    Partly,
    Rotary,
    Tokens,
    TwoBlocks,
    WithRope,
    made,
)

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network import Structure

NAME = "attention.o"
CACHED = {("attention", "turns", 4), ("attention", "cosines", 8), ("attention", "sines", 8)}
INNER = "enter through their inner products alone, or be rotated by their positions in pairs"


def found(network, name=NAME, batch=None):
    attention = Structure.of(network, tokens() if batch is None else batch).attention_of(name)
    return attention.layout, {(table.module, table.name, table.width) for table in attention.tables}


@pytest.mark.parametrize(
    ("kind", "rotated", "interleaved", "tables"),
    [
        (Rotary, 8, False, {("attention", "turns", 4)}),
        (Neighbours, 8, True, {("attention", "turns", 4)}),
        (Cached, 8, False, CACHED),
        (CachedNeighbours, 8, True, CACHED),
        (ByPairs, 8, True, {("attention", "cache", 4)}),
        (Complex, 8, True, {("attention", "cis", 4)}),
        (Partly, 4, False, {("attention", "turns", 2)}),
        (WithRope, 8, False, {("attention.rope", "turns", 4)}),
    ],
)
def test_pairs_and_tables(kind, rotated, interleaved, tables):
    layout, held = found(block(kind, bias=kind is not Neighbours))
    assert layout.layers == ("attention.q", "attention.k", "attention.v", NAME)
    assert (layout.heads, layout.groups, layout.size) == (4, 2, 8)
    assert (layout.rotated, layout.interleaved) == (rotated, interleaved)
    assert held == tables


@pytest.mark.parametrize("length", [7, 8])
def test_tables_that_a_call_is_given_and_a_mask_as_wide_as_they_are(length):
    layout, tables = found(made(Tokens), "layers.1.o", tokens(length=length))
    assert (layout.rotated, layout.interleaved) == (8, False)
    assert tables == {("layers.1", "cos", 8), ("layers.1", "sin", 8)}


def test_a_module_that_several_attentions_call():
    network = made(TwoBlocks)
    for name in ("first", "second"):
        layout, tables = found(network, f"{name}.attention.o")
        assert layout.rotated == 8
        assert tables == {(f"{name}.attention.rope", "turns", 4)}


@pytest.mark.parametrize("kind", [Rotary, Neighbours])
def test_pairs_so_slow_that_the_batch_turns_them_by_nothing_are_found_as_well(kind):
    layout, _ = found(block(kind, least=1e-9))
    assert layout.rotated == 8


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 30.0])
def test_weights_that_hardly_attend_to_anything_hide_nothing(scale):
    network = block(Partly)
    with torch.no_grad():
        for layer in (network.attention.q, network.attention.k):
            layer.weight *= scale
            layer.bias *= scale
    assert found(network)[0].rotated == 4


def test_heads_of_one_pair():
    layout, _ = found(block(Rotary, size=2))
    assert (layout.size, layout.rotated, layout.sizes.tolist()) == (2, 2, [2])


def test_normalised_ones_are_refused_with_the_reason():
    with pytest.raises(UnsupportedLayerError, match=rf"layer 'attention\.o': the heads .*{INNER}"):
        found(block(Normalised))


def test_one_token_attends_to_itself():
    with pytest.raises(UnsupportedLayerError, match=INNER):
        found(block(Rotary), batch=tokens(length=1))


def test_the_network_is_left_alone():
    network = block(WithRope)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    held = network.attention.rope.turns
    found(network)
    assert network.attention.rope.turns is held
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
