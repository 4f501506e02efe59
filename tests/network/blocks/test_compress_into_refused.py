"""What is refused when a network is written piece by piece, and how a damaged folder is."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_pairs import pair, pairs_of, written
from safetensors.torch import load_file, save_file

import dalr_stream as ds
from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    NonFiniteError,
    StoreDamagedError,
    StoreNotFoundError,
    UnsupportedLayerError,
)
from dalr_stream.network.saved.files import INDEX
from dalr_stream.numerics.lowrank.factors import LowRankLayer

sys.path.insert(0, str(Path(__file__).parents[2] / "engine" / "blocks"))
from block_networks import Tower, batches, made


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"blocks.9.up": pair(3, 3)}, LayerNotFoundError, "blocks.9.up"),
        ({"head": pair(30, 8)}, UnsupportedLayerError, "'head.weight' is shared with 'words.weight'"),
        (
            {"blocks.1.up": "strange"},
            InvalidInputError,
            "layer 'blocks.1.up': a replacement is what at_rank or at_size gives",
        ),
        (
            {"blocks.1.up": lambda: 3},
            InvalidInputError,
            "layer 'blocks.1.up': a replacement is what at_rank or at_size gives",
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
