"""Block by block into a bucket: what the blocks give each other lies there too, and the store has the same bits."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from stores_in_buckets import contents, names, whole_tiles

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, StoreNotFoundError
from dalr_stream.storage.places.place import place_of

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "blocks"))
from block_networks import Tower, batches, in_shards, made
from notes import Notes
from soaking import in_soak
from stopping import StopAfter, StoppedError

small = partial(Tower, 3)
LAYERS = ["blocks.*", "head"]


def accumulate(network, store, **options):
    return ds.accumulate(network, batches(), ds.watch(network, LAYERS), store=store, **options)


def streams(store):
    return {part for name in names(store) for part in name.split("/") if part.startswith("@stream")}


@pytest.mark.parametrize("stop", [8, *in_soak(3, 14)])
def test_stopped_anywhere_the_stream_in_the_bucket_goes_on_to_the_bits_of_a_folder(store, tmp_path, stop):
    model = made(small)
    network = ds.open_network(small, in_shards(model, tmp_path / "weights"))
    with pytest.raises(StoppedError):
        accumulate(network, store, progress=StopAfter(stop))
    assert 1 <= len(streams(store)) <= 3
    notes = Notes()
    accumulate(network, store, progress=notes)
    assert len(notes.started) == 3 - (stop - 1) // 5
    assert any("of '" + store in note and "GiB" in note for note in notes.said)
    accumulate(model, tmp_path / "whole")
    assert contents(store) == contents(tmp_path / "whole")
    assert not any("unfinished" in name for name in names(store))
    assert not ds.open_store(store).verify().findings


def test_moments_of_one_block_at_a_time(in_memory, tmp_path):
    network = ds.open_network(small, in_shards(made(small), tmp_path / "weights"))
    layers = ds.watch(network, LAYERS)
    with ds.statistics_by_block(network, batches(), layers, store=in_memory) as statistics:
        pairs = {
            name: partial(lambda name: ds.dalr(statistics[name], ridge=1e-3).at_rank(2), name)
            for name in statistics
            if name.startswith("blocks")
        }
        ds.compress_into(network, pairs, tmp_path / "small")
        with pytest.raises(StoreNotFoundError, match="given up"):
            statistics["blocks.0.up"].inputs  # noqa: B018  # read when it is asked for
    assert not any("moments" in name or "unfinished" in name for name in names(in_memory))
    whole = accumulate(made(small), tmp_path / "whole")
    expected = ds.compress(made(small), {name: ds.dalr(whole[name], ridge=1e-3).at_rank(2) for name in pairs})
    written = ds.load(tmp_path / "small", small).state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in expected.state_dict().items())


def test_layer_after_layer_the_compressed_blocks_lie_on_a_disk(in_memory):
    choices = {"blocks.1.up": ds.LayerChoice("spectral", 2)}
    with pytest.raises(InvalidInputError, match=r"lies on a disk, and 'memory://.*' does not: give a folder"):
        ds.compress_sequentially(made(small), batches(), choices, blocks=True, store=in_memory)


@pytest.mark.soak
def test_ranks_that_share_no_disk_meet_in_the_bucket(in_s3, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "ranks"))
    from launching import launch
    from rank_job import deep_network

    ds.network.save_weights(deep_network(), tmp_path / "deep.safetensors")
    server = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    common = {"WEIGHTS": str(tmp_path / "deep.safetensors"), "BATCHES": "7", **server}
    ended = launch(tmp_path / "ranks", "blocks", 3, LOADER="dealing", STORE=in_s3, DIE="2:4", **common)
    assert ended.codes == [1, 1, -9], ended.errors
    ended = launch(tmp_path / "ranks", "blocks", 2, LOADER="dealing", STORE=in_s3, **common)
    assert ended.codes == [0, 0], ended.errors
    ended = launch(tmp_path / "one", "blocks", 1, **common)
    assert ended.codes == [0], ended.errors
    with whole_tiles():
        assert contents(in_s3) == contents(tmp_path / "one")
    assert not any("unfinished" in name for name in names(in_s3))
    assert place_of(in_s3).exists()
