"""Written piece by piece, a compressed network is that of `compress` and `save`."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_pairs import pair, pairs_of, same_network, written
from safetensors.torch import save_file
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import (
    InvalidInputError,
    UnsupportedLayerError,
)
from dalr_stream.network.saved.checkpoint import provenance
from dalr_stream.network.saved.files import INDEX
from dalr_stream.network.saved.shards import Shards
from dalr_stream.numerics.selection.nodes import SelectedNodes

sys.path.insert(0, str(Path(__file__).parents[2] / "engine" / "blocks"))
from block_networks import Tower, batches, in_shards, made


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)
        )
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("shift", torch.randn(8, 1, 1))

    def forward(self, x):
        return self.blocks(self.stem(x)) * self.scale + self.shift


@pytest.mark.parametrize("build", [Tower, Grouped, lambda: Tower().to(torch.bfloat16)])
@pytest.mark.parametrize("opened", [True, False])
def test_the_network_is_the_one_of_compress_and_save(build, opened, tmp_path):
    model = made(build)
    pairs = pairs_of(model)
    small = ds.compress(model, pairs)
    ds.save(small, tmp_path / "whole", provenance={"data": "words"})
    network = ds.open_network(build, in_shards(model, tmp_path / "weights")) if opened else model
    written(tmp_path / "small", network, pairs, provenance={"data": "words"})
    loaded = ds.load(tmp_path / "small", build)
    assert same_network(loaded, small)
    assert provenance(tmp_path / "small") == {"data": "words"}
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("whole", "small")]
    for plan in plans:
        del plan["weights_sha256"], plan["digest"], plan["beside_sha256"]
        plan["plan"].sort(key=lambda step: step["layer"])
    assert plans[0] == plans[1]
    assert not (tmp_path / "small.unfinished").exists()
    shards = set(json.loads((tmp_path / "small" / INDEX).read_text())["weight_map"].values())
    assert {path.name for path in (tmp_path / "small").iterdir()} == {*shards, INDEX, "plan.json", "README.md"}
    again = ds.open_network(build, tmp_path / "small")
    assert all(parameter.is_meta for name, parameter in again.named_parameters() if "blocks" in name)
    data = torch.randn(2, 3, 8, 8) if build is Grouped else batches(1)[0]
    call = (lambda net: net(data)) if build is Grouped else (lambda net: net(**data))
    assert torch.equal(call(again), call(small))


def test_layers_are_asked_for_in_turn_and_one_piece_is_read(tmp_path, monkeypatch):
    model = made(Tower)
    network, pairs = ds.open_network(Tower, in_shards(model, tmp_path / "weights")), pairs_of(model, "re:blocks.*up")
    happened, read, save = [], Shards.tensor, save_file

    def tensor(shards, name):
        happened.append(name)
        return read(shards, name)

    def saved(tensors, *arguments):
        happened.append("saved")
        save(tensors, *arguments)

    monkeypatch.setattr(Shards, "tensor", tensor)
    monkeypatch.setattr("dalr_stream.network.saved.shard_writer.save_file", saved)
    given = {name: partial(lambda name: happened.append(f"asked {name}") or pairs[name], name) for name in pairs}
    written(tmp_path / "small", network, given)
    names = [name for name in model.state_dict() if "up" not in name and name != "head.weight"]
    assert sorted(name for name in happened if name in model.state_dict()) == sorted(names)  # once each, replaced never
    pieces = " ".join(happened).split("saved")
    assert [part.count(".o.weight") for part in pieces] == [0, 0, 1, 1, 1, 1, 0, 0]
    assert [one for one in happened if one.startswith("asked")] == [f"asked {name}" for name in pairs]
    assert all(parameter.is_meta for parameter in network.parameters())
    assert same_network(ds.load(tmp_path / "small", Tower), ds.compress(model, pairs))


def test_what_is_given_as_none_stays_and_provenance_may_be_known_in_the_end(tmp_path):
    model = made(Tower)
    network, pairs = ds.open_network(Tower, in_shards(model, tmp_path / "weights")), pairs_of(model, "re:blocks.*up")
    kept, asked = list(pairs)[1:], []

    def given(name):
        asked.append(name)
        return pairs[name] if name in kept else None

    replaced = {name: partial(given, name) for name in pairs}
    written(tmp_path / "small", network, replaced, provenance=lambda: {"asked": asked})
    assert provenance(tmp_path / "small") == {"asked": list(pairs)}
    small = ds.compress(model, {name: pairs[name] for name in kept})
    assert same_network(ds.load(tmp_path / "small", Tower), small)


def some(channels, kept):
    draw = np.random.default_rng(kept)
    nodes = np.sort(draw.permutation(channels)[:kept])
    restore = draw.normal(size=(channels, kept))
    restore[nodes] = np.eye(kept)
    return SelectedNodes(nodes, restore, draw.normal(size=channels), 1.0)


def test_selections_within_blocks(tmp_path):
    model = made(Tower)
    network = ds.open_network(Tower, in_shards(model, tmp_path / "weights"))
    layers = ds.watch(network, ["blocks.*"], example=batches(1)[0])
    assert [layer.name for layer in layers if layer.group is not None] == [f"blocks.{n}.up" for n in range(4)]
    assert "'blocks.0' hands them on" in next(one.unprunable for one in layers if one.name == "blocks.0.down")
    given = {f"blocks.{n}.up": some(12, 5 + n) for n in range(3)}
    given |= {f"blocks.{n}.o": pair(8, 8, seed=n) for n in (0, 3)}
    written(tmp_path / "small", network, given, example=batches(1)[0])
    small = ds.compress(model, given, example=batches(1)[0])
    assert same_network(ds.load(tmp_path / "small", Tower), small)
    assert torch.equal(ds.open_network(Tower, tmp_path / "small")(**batches(1)[0]), small(**batches(1)[0]))
    assert all(parameter.is_meta for parameter in network.parameters())
    with pytest.raises(
        UnsupportedLayerError, match=r"layer 'blocks\.0\.down': its channels cannot be pruned: 'blocks\.0'"
    ):
        written(tmp_path / "other", network, {"blocks.0.down": some(8, 4)}, example=batches(1)[0])
    with pytest.raises(InvalidInputError, match=r"layer 'blocks\.0\.up': which layers are narrowed with it shows"):
        written(tmp_path / "other", network, {"blocks.0.up": some(12, 4)})
    assert not [path for path in tmp_path.iterdir() if "other" in path.name]


def test_a_network_that_was_written_so_can_be_compressed_again(tmp_path):
    model = made(Tower)
    first, second = pairs_of(model, "re:blocks.0.*"), pairs_of(model, "re:blocks.2.*")
    written(tmp_path / "one", ds.open_network(Tower, in_shards(model, tmp_path / "weights")), first)
    network = ds.open_network(Tower, tmp_path / "one")
    written(tmp_path / "two", network, second)
    small = ds.compress(ds.compress(model, first), second)
    loaded = ds.load(tmp_path / "two", Tower)
    assert same_network(loaded, small)
    assert loaded.compression_plan == small.compression_plan
    plan = json.loads((tmp_path / "two" / "plan.json").read_text())
    assert plan["before"]["parameters"] == ds.network.parameter_count(model)


def test_transformers_loads_it_alone_where_no_layer_was_replaced(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    model = made(lambda: transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(tmp_path / "weights", max_shard_size="4KB")
    network = ds.open_network(lambda: transformers.AutoModelForCausalLM.from_config(config), tmp_path / "weights")
    written(tmp_path / "same", network, {})
    assert same_network(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "same"), model)
    pairs = pairs_of(model, "re:model.layers.*proj")
    written(tmp_path / "small", network, pairs)
    with pytest.raises(Exception, match="this network was compressed by dalr_stream"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")

    def build():
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(tmp_path / "small")
        )

    assert same_network(ds.load(tmp_path / "small", build), ds.compress(model, pairs))
    small = ds.open_network(build, tmp_path / "small")
    words = torch.arange(12).reshape(2, 6)
    assert torch.equal(small(words).logits, ds.compress(model, pairs)(words).logits)


@pytest.mark.parametrize("sizes", [(10, 10, 10), (10, 10, 9)])
def test_transformers_loads_it_alone_where_blocks_are_narrowed_alike(sizes, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip

    def build():
        return transformers.AutoModelForCausalLM.from_config(config)

    model, words = made(build), torch.arange(12).reshape(2, 6)
    model.save_pretrained(tmp_path / "weights")
    network = ds.open_network(build, tmp_path / "weights")
    given = {f"model.layers.{n}.mlp.up_proj": some(24, size) for n, size in enumerate(sizes)}
    given = {name: SelectedNodes(one.kept, one.restore, np.zeros(24), 1.0) for name, one in given.items()}
    written(tmp_path / "small", network, given, example={"input_ids": words})
    small = ds.compress(model, given, example={"input_ids": words})
    assert same_network(ds.load(tmp_path / "small", build), small)
    ds.save(small, tmp_path / "whole")
    for folder in (tmp_path / "small", tmp_path / "whole"):
        if sizes[2] != sizes[1]:
            with pytest.raises(Exception, match="this network was compressed by dalr_stream"):
                transformers.AutoModelForCausalLM.from_pretrained(folder)
            continue
        alone = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert alone.config.intermediate_size == 10
        assert torch.equal(alone(words).logits, small(words).logits)
        narrow = ds.load(folder, lambda alone=alone: type(alone)(alone.config))
        assert same_network(narrow, small)
        assert "from_pretrained` loads it" in (folder / "README.md").read_text()
