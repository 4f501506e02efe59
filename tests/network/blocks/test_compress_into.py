"""Written piece by piece, a compressed network is that of `compress` and `save`, and there whole or not at all."""

import contextlib
import errno
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from crashing_disk import Disk, images, lay_down
from safetensors.torch import load_file, save_file
from stopping import StopAfter, StoppedError
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import (
    DiskSpaceError,
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    NonFiniteError,
    StoreDamagedError,
    StoreNotFoundError,
    UnsupportedLayerError,
)
from dalr_stream.network.saved.checkpoint import provenance
from dalr_stream.network.saved.shards import Shards
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.selection.nodes import SelectedNodes

sys.path.insert(0, str(Path(__file__).parents[2] / "engine" / "blocks"))
from block_networks import Tower, batches, files_of, in_shards, made, same_files

INDEX = "model.safetensors.index.json"
ONE_IN = 3
"""Of the images that a crash may leave, how many are looked at: all of them in `make soak`."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def pair(outputs, inputs, rank=2, seed=0):
    draw = np.random.default_rng(seed)
    return LowRankLayer(draw.normal(size=(rank, inputs)), draw.normal(size=(outputs, rank)), draw.normal(size=outputs))


def pairs_of(model, pattern="re:blocks.*"):
    """A pair of rank 2 for each layer, or each of its groups, of drawn numbers."""
    layers = ds.network.select_layers(model, [pattern])
    return {layer.name: pair(layer.outputs, layer.inputs, seed=seed) for seed, layer in enumerate(layers)}


def same_network(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def written(folder, model, pairs, **options):
    return ds.compress_into(model, pairs, folder, **options)


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


def test_stopped_after_any_piece_it_goes_on(tmp_path):
    model = made(Tower)
    network, pairs = ds.open_network(Tower, in_shards(model, tmp_path / "weights")), pairs_of(model)
    written(tmp_path / "small", network, pairs, made_from="rank 2")
    expected = files_of(tmp_path / "small")
    for stop in (1, 3, 7):
        asked = []
        counted = {name: partial(lambda name, asked: asked.append(name) or pairs[name], name, asked) for name in pairs}
        folder = tmp_path / f"stopped-{stop}"
        for _ in range(2):
            with contextlib.suppress(StoppedError):
                written(folder, network, counted, made_from="rank 2", progress=StopAfter(stop))
                break
            assert not folder.exists()
        if not folder.exists():
            written(folder, network, counted, made_from="rank 2")
        assert files_of(folder) == expected
        assert sorted(asked) == sorted(pairs)
        assert not folder.with_name(f"{folder.name}.unfinished").exists()


@pytest.mark.parametrize("words", [(None, None), ("rank 2", "rank 3"), ("rank 2", None)])
def test_what_was_made_from_something_else_is_made_anew(words, tmp_path):
    model = made(Tower)
    before, pairs = pairs_of(model, "re:blocks.0.*"), pairs_of(model)
    with pytest.raises(StoppedError):
        written(tmp_path / "small", model, before, made_from=words[0], progress=StopAfter(2))
    written(tmp_path / "small", model, pairs, made_from=words[1])
    written(tmp_path / "other", model, pairs)
    assert same_files(tmp_path / "small", tmp_path / "other") == []


def test_other_weights_are_something_else(tmp_path):
    pairs = pairs_of(made(Tower))
    for seed in (0, 1):
        weights = in_shards(made(Tower, seed), tmp_path / "weights", files=3)
        network = ds.open_network(Tower, weights)
        if seed == 0:
            with pytest.raises(StoppedError):
                written(tmp_path / "small", network, pairs, made_from="rank 2", progress=StopAfter(3))
    written(tmp_path / "small", network, pairs, made_from="rank 2")
    assert same_network(ds.load(tmp_path / "small", Tower), ds.compress(made(Tower, 1), pairs))


def test_other_weights_in_memory_are_something_else(tmp_path):
    model = made(Tower)
    pairs = pairs_of(model, "re:blocks.*up")
    with pytest.raises(StoppedError):
        written(tmp_path / "small", model, pairs, made_from="rank 2", progress=StopAfter(3))
    with torch.no_grad():
        model.words.weight.zero_()
    written(tmp_path / "small", model, pairs, made_from="rank 2")
    assert same_network(ds.load(tmp_path / "small", Tower), ds.compress(model, pairs))


def test_another_type_is_something_else(tmp_path):
    def half():
        return Tower().bfloat16()

    pairs, weights = pairs_of(made(Tower)), in_shards(made(Tower), tmp_path / "weights", files=3)
    with pytest.raises(StoppedError):
        written(tmp_path / "small", ds.open_network(Tower, weights), pairs, made_from="rank 2", progress=StopAfter(3))
    written(tmp_path / "small", ds.open_network(half, weights), pairs, made_from="rank 2")
    assert same_network(ds.load(tmp_path / "small", half), ds.compress(made(Tower).bfloat16(), pairs))


def test_a_shard_that_was_cut_or_changed_meanwhile_is_written_again(tmp_path):
    model = made(Tower)
    pairs = pairs_of(model)
    with pytest.raises(StoppedError):
        written(tmp_path / "small", model, pairs, made_from="rank 2", progress=StopAfter(4))
    shards = sorted((tmp_path / "small.unfinished" / "network").iterdir())
    shards[1].write_bytes(shards[1].read_bytes()[:-3])
    shards[2].write_bytes(shards[2].read_bytes()[:-1] + b"?")
    written(tmp_path / "small", model, pairs, made_from="rank 2")
    assert same_network(ds.load(tmp_path / "small", Tower), ds.compress(model, pairs))


def two_layers():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()


def test_a_crash_after_any_operation_leaves_the_network_before_or_the_new_one(tmp_path, soak):
    model, work, before = made(two_layers), tmp_path / "work", tmp_path / "before"
    pairs = pairs_of(model, "*")
    old, new = ds.compress(model, {"1": pairs["1"]}), ds.compress(model, pairs)
    ds.save(old, work / "small")
    shutil.copytree(work, before)
    disk = Disk(work)
    with disk.recording():
        written(work / "small", model, pairs, made_from="rank 2")
    expected, tried = files_of(work / "small"), 0
    for number, (done, kind, image) in enumerate(images(before, disk.journal)):
        if number % ONE_IN and not soak:
            continue
        folder, where = tmp_path / "image", f"after {done} of {len(disk.journal)} operations, {kind}"
        lay_down(image, folder)
        if (folder / "small").exists():
            found = ds.load(folder / "small", two_layers)
            assert same_network(found, old) or same_network(found, new), where
        written(folder / "small", model, pairs, made_from="rank 2")
        assert files_of(folder / "small") == expected, where
        shutil.rmtree(folder)
        tried += 1
    assert tried > 20


def test_a_full_disk_changes_nothing_and_the_next_call_goes_on(tmp_path, monkeypatch):
    model = made(Tower)
    pairs = pairs_of(model)
    ds.save(ds.compress(model, pairs_of(model, "re:blocks.1.*")), tmp_path / "small")
    before, real, calls = files_of(tmp_path / "small"), save_file, []

    def full(tensors, *arguments):
        calls.append(tensors)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, *arguments)

    monkeypatch.setattr("dalr_stream.network.saved.shard_writer.save_file", full)
    with pytest.raises(DiskSpaceError, match="the disk is full"):
        written(tmp_path / "small", model, pairs, made_from="rank 2")
    assert files_of(tmp_path / "small") == before
    written(tmp_path / "small", model, pairs, made_from="rank 2")
    assert len(calls) == 8
    assert same_network(ds.load(tmp_path / "small", Tower), ds.compress(model, pairs))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"blocks.9.up": pair(3, 3)}, LayerNotFoundError, "blocks.9.up"),
        ({"head": pair(30, 8)}, UnsupportedLayerError, "'head.weight' is shared with 'words.weight'"),
        (
            {"blocks.1.up": "strange"},
            InvalidInputError,
            "layer 'blocks.1.up': piece by piece a replacement is what at_rank",
        ),
        (
            {"blocks.1.up": lambda: 3},
            InvalidInputError,
            "layer 'blocks.1.up': piece by piece a replacement is what at_rank",
        ),
        ({"blocks.1.up": pair(5, 8)}, InvalidInputError, "layer 'blocks.1.up': the solution is for 5 x 8"),
        ({"blocks.1.norm": pair(8, 8)}, UnsupportedLayerError, "blocks.1.norm"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(change, error, message, tmp_path):
    model = made(Tower)
    with pytest.raises(error, match=message):
        written(tmp_path / "small", model, {**pairs_of(model), **change})
    assert list(tmp_path.iterdir()) == []


def test_numbers_beyond_the_type_of_the_layer(tmp_path):
    model = made(lambda: Tower().to(torch.float16))
    with pytest.raises(NonFiniteError, match=r"layer 'blocks.1.up': its replacement must fit into torch\.float16"):
        written(
            tmp_path / "small",
            model,
            {"blocks.1.up": LowRankLayer(*(np.full(shape, 1e30) for shape in ((1, 8), (12, 1), (12,))))},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="holds other files"):
        written(tmp_path / "small", made(Tower), {})
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_folder_that_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for folder, message in (("file", "'file' is a file"), (".", r"'\.' has no name of its own")):
        with pytest.raises(InvalidInputError, match=message):
            written(folder, made(Tower), {})
        with pytest.raises(InvalidInputError, match=message):
            ds.save(made(Tower), folder)


def test_a_working_folder_that_is_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "small.unfinished").mkdir()
    (tmp_path / "small.unfinished" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"small\.unfinished'.* holds other files, 'notes.txt' for one"):
        written(tmp_path / "small", made(Tower), {})
    assert (tmp_path / "small.unfinished" / "notes.txt").read_text() == "mine"


def lacking(folder):
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.unlink()


def cut(folder):
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-5])


def flipped(folder):
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")


def without_a_tensor(folder):
    shard = sorted(folder.glob("*.safetensors"))[2]
    state = load_file(shard)
    state.popitem()
    save_file(state, shard)


def lying_index(folder):
    index = json.loads((folder / INDEX).read_text())
    first, second = list(index["weight_map"])[:2]
    index["weight_map"][first] = index["weight_map"][second]
    del index["metadata"]
    (folder / INDEX).write_text(json.dumps(index))


def no_index(folder):
    (folder / INDEX).unlink()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lacking, StoreNotFoundError), (cut, StoreDamagedError), (flipped, StoreDamagedError),
        (without_a_tensor, (StoreDamagedError, FingerprintMismatchError)), (lying_index, StoreDamagedError),
        (no_index, StoreNotFoundError),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_line(damage, error, tmp_path):
    model = made(Tower)
    written(tmp_path / "small", model, pairs_of(model))
    damage(tmp_path / "small")
    with pytest.raises(error, match="small"):
        ds.load(tmp_path / "small", Tower)
    with pytest.raises(error, match="small"):
        ds.open_network(Tower, tmp_path / "small")(**batches(1)[0])


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
