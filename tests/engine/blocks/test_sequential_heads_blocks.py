"""Heads layer after layer, block by block: the network that the whole one becomes, to the bit."""

import dataclasses
from contextlib import suppress

import pytest
import torch
from attentions import Attention, Block, Masked
from block_networks import in_shards, made
from notes import Notes
from rotary_attentions import Partly, Rotary
from stopping import StopAfter, StoppedError
from test_sequential_blocks import numbers, require_same
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, RankError, UnsupportedLayerError

FIRST, SECOND = (f"blocks.{number}.attention.o" for number in range(2))


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


class Tower(nn.Module):
    """A stem, blocks of attention, and a head."""

    def __init__(self, kind=Attention):
        super().__init__()
        self.stem, self.head = nn.Linear(12, 12), nn.Linear(12, 5)
        self.blocks = nn.ModuleList(Block(kind()) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batches(samples=12):
    generator = torch.Generator().manual_seed(1)
    return list((2 * torch.randn(samples, 7, 12, generator=generator)).split(5))


def heads(size, method="heads", **options):
    return ds.LayerChoice(method, size, **options)


def felt(model, store=None):
    """Statistics with the gradients that weigh heads."""
    layers = ds.watch(model, ["blocks.*"], gradients=["blocks.*.k", "blocks.*.o"])
    return ds.accumulate(model, batches(), layers, store=store)


def in_blocks(model, chosen, store, **options):
    return ds.compress_sequentially(model, batches(), chosen, store=store, blocks=True, **options)


def whole(model, chosen, **options):
    return ds.compress_sequentially(model, batches(), chosen, **options)


PAIR = ds.LayerChoice("dalr_anchored_affine", 4)
BESIDE = {"blocks.0.up": ds.LayerChoice("spectral", 11), "blocks.1.down": PAIR}
CASES = {
    "outputs": (Attention, {FIRST: heads(2), **BESIDE, SECOND: heads(3)}, "outputs"),
    "towards the stream": (Masked, {FIRST: heads(2), **BESIDE, SECOND: heads(3)}, "stream"),
    "rotary pairs": (Rotary, {"blocks.0.up": PAIR, SECOND: heads(2)}, "stream"),
    "some dimensions rotated": (Partly, {SECOND: heads(2)}, "outputs"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_network_as_whole(case, tmp_path):
    kind, chosen, target = CASES[case]
    model = made(lambda: Tower(kind))
    expected = whole(model, chosen, target=target)
    found = in_blocks(model, chosen, tmp_path / "store", target=target)
    require_same(expected, found)
    assert found.network.blocks[1].attention.head_dim == chosen[SECOND].size
    assert list((tmp_path / "store" / "blocks").glob("block-*/passes")) == []


def test_weighted_ones_from_a_network_that_is_opened_by_blocks(tmp_path):
    model = made(Tower)
    network, store = ds.open_network(Tower, in_shards(model, tmp_path / "weights")), tmp_path / "statistics"
    expected, found = (
        {name: heads(2, "heads_weighted", attention=known) for name in (FIRST, SECOND)}
        for known in (felt(model), felt(network, store))
    )
    result = in_blocks(network, found, tmp_path / "store")
    require_same(whole(model, expected), result)
    again, known = Notes(), numbers(result.network)
    in_blocks(network, found, tmp_path / "store", progress=again)
    assert again.started == []
    for other in (heads(2), replaced(found[FIRST])):  # the second has the same choices but for gradients
        after = numbers(in_blocks(network, {**found, FIRST: other}, tmp_path / "store").network)
        assert any(not torch.equal(tensor, after[name]) for name, tensor in known.items())


def replaced(choice):
    """The same with other gradients by the keys."""
    keys = FIRST.replace(".o", ".k")
    layer = choice.attention[keys]
    others = ds.Moments.of(torch.randn(40, 8, generator=torch.Generator().manual_seed(3)).double().numpy())
    attention = {**choice.attention, keys: dataclasses.replace(layer, gradients=others)}
    return dataclasses.replace(choice, attention=attention)


def test_a_decoder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = made(lambda: transformers.AutoModelForCausalLM.from_config(config))
    words = torch.randint(30, (12, 7), generator=torch.Generator().manual_seed(1)).split(5)
    data = [{"input_ids": one} for one in words]
    chosen = {f"model.layers.{number}.self_attn.o_proj": heads(2) for number in range(2)}
    expected = ds.compress_sequentially(model, data, chosen)
    found = ds.compress_sequentially(model, data, chosen, store=tmp_path, blocks=True)
    require_same(expected, found)
    assert found.network.model.layers[1].self_attn.head_dim == 2


def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path):
    model = made(lambda: Tower(Rotary))
    chosen = {FIRST: heads(4), SECOND: heads(2)}
    network = ds.open_network(lambda: Tower(Rotary), in_shards(model, tmp_path / "weights"))
    found, left = None, 0
    while found is None:
        left += 4  # a pass that a checkpoint does not reach begins again
        with suppress(StoppedError):
            found = in_blocks(network, chosen, tmp_path / "store", progress=StopAfter(left))
    assert left > 8
    require_same(whole(model, chosen), found)


class Apart(nn.Module):
    """Keys of one block, and all else of the next: an attention over two of them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([KeysAlone(), TheRest()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class KeysAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Linear(12, 8)

    def forward(self, x):
        return torch.cat([x, self.k(x)], -1)


class TheRest(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v, self.o = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, x):
        x, k = x.split([12, 8], -1)
        q, k, v = (one.unflatten(-1, (-1, 4)).transpose(-2, -3) for one in (self.q(x), k, self.v(x)))
        weights = (q @ k.mT).softmax(-1)
        return self.o((weights @ v).transpose(-2, -3).flatten(-2))


@pytest.mark.parametrize(
    ("build", "chosen", "error", "message"),
    [
        (Tower, {FIRST: heads(5)}, RankError, r"size of a head must lie in 1\.\.4, got 5"),
        (
            Tower, {FIRST: heads(2), "blocks.0.attention.q": PAIR}, InvalidInputError,
            "belongs to the attention of 'blocks.0.attention.o'",
        ),
        (
            Tower, {FIRST: heads(2, "heads_weighted", attention={})}, InvalidInputError,
            "needs the gradients of 'blocks.0.attention.k', which is not among no layers",
        ),
        (Apart, {"blocks.1.o": heads(2)}, UnsupportedLayerError, "all layers of an attention must be in one block"),
    ],
)  # fmt: skip
def test_what_is_refused_before_any_pass(build, chosen, error, message, tmp_path):
    notes = Notes()
    with pytest.raises(error, match=message):
        in_blocks(made(build), chosen, tmp_path / "store", progress=notes)
    assert notes.started == []
