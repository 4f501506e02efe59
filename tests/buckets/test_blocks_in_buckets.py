"""Block by block into a bucket: what the blocks give each other lies there too, and the store has the same bits."""

import os
import sys
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from dying import Killed, process
from stores_in_buckets import contents, names, whole_tiles

import dalr_stream as ds
from dalr_stream.errors import FingerprintMismatchError, ParameterIncreaseWarning, StoreNotFoundError
from dalr_stream.storage.places.place import place_of

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "blocks"))
from block_networks import Tower, batches, in_shards, made
from notes import Notes
from soaking import in_soak
from stopping import StopAfter, StoppedError

small = partial(Tower, 3)
LAYERS = ["blocks.*", "head"]
CHOICES = {
    "blocks.0.o": ds.LayerChoice("dalr_anchored_affine", 3),
    "blocks.1.up": ds.LayerChoice("spectral", 6),
    "blocks.1.down": ds.LayerChoice("dalr_anchored_affine", 2),
}


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


def in_turn(network, store, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return ds.compress_sequentially(network, batches(3), CHOICES, store=store, blocks=True, **options)


def saved(found, folder):
    """Return the bytes of the compressed network that a result is, written block by block."""
    ds.compress_into(found.network, {}, folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.startswith("model")}


def facts(found):
    return [found.passes, {name: (one.inherited, one.error, one.target) for name, one in found.layers.items()}]


@pytest.mark.parametrize("stop", [5, *in_soak(2, 8, 11)])
def test_layer_after_layer_the_compressed_blocks_lie_in_the_bucket_too(store, tmp_path, stop):
    network = ds.open_network(small, in_shards(made(small), tmp_path / "weights"))
    expected = in_turn(network, tmp_path / "folder")
    with pytest.raises(StoppedError):
        in_turn(network, store, progress=StopAfter(stop))
    notes = Notes()
    found = in_turn(network, store, progress=notes)
    assert facts(found) == facts(expected)
    assert saved(found, tmp_path / "from-bucket") == saved(expected, tmp_path / "from-folder")
    assert any("GiB of '" + store in note and "of compressed blocks" in note for note in notes.said)
    assert {name.split("/")[1] for name in names(store) if "block-" in name} == {"block-0000", "block-0001"}
    assert not any("passes" in name or "unfinished" in name for name in names(store))
    notes = Notes()
    assert facts(in_turn(network, store, progress=notes)) == facts(expected)
    assert notes.started == []


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_layer_after_layer_killed_at_any_put_it_ends_in_the_same_and_leaves_no_litter(in_memory, done, soak):
    network = made(small)
    with process() as writes:
        expected = in_turn(network, in_memory)
    of_a_block = [at for at, key in enumerate(writes) if "block-0001/network" in key]
    some = {len(writes) // 3, 2 * len(writes) // 3, of_a_block[len(of_a_block) // 2], len(writes) - 3}
    for at in range(len(writes)) if soak else sorted(some):
        root = in_memory.replace("store.zarr", f"{at}.zarr")
        with process(at, done=done), suppress(Killed):
            in_turn(network, root)
        with process():
            found = in_turn(network, root)
        assert facts(found) == facts(expected)
        state = found.network.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.network.state_dict().items())
        assert names(root) == names(in_memory)


def test_a_compressed_block_that_is_gone_or_another_is_named(in_memory, tmp_path):
    network = ds.open_network(small, in_shards(made(small), tmp_path / "weights"))
    before = in_turn(network, in_memory).network
    block = place_of(in_memory) / "blocks" / "block-0001" / "network"
    head = (block / "zarr.json").read_bytes()
    block.remove()
    with pytest.raises(StoreNotFoundError, match=r"'memory://.*block-0001/network' was removed since the network was"):
        ds.compress_into(before, {}, tmp_path / "small")
    (block / "zarr.json").write_bytes(head)
    with pytest.raises(FingerprintMismatchError, match=r"'memory://.*' was replaced since the network was opened"):
        ds.compress_into(before, {}, tmp_path / "small")
    assert facts(in_turn(network, in_memory))  # its tensors are gone: it is solved again
    ds.compress_into(in_turn(network, in_memory).network, {}, tmp_path / "small")


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
