"""Writing piece by piece, killed, on a full disk, or begun for something else: there whole or not at all."""

import contextlib
import errno
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from crashing_disk import Disk, images, lay_down
from drawn_pairs import pairs_of, same_network, written
from safetensors.torch import save_file
from stopping import StopAfter, StoppedError
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import (
    DiskSpaceError,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "engine" / "blocks"))
from block_networks import Tower, files_of, in_shards, made, same_files

ONE_IN = 3
"""Of the images that a crash may leave, how many are looked at: all of them in `make soak`."""


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
