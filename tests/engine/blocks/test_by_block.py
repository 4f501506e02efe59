"""Statistics of one block at a time: the same as of all, each block's moments gone once the next is asked for."""

from functools import partial

import numpy as np
import pytest
from block_networks import Tower, batches, files_of, in_shards, made, same_files
from stopping import StopAfter, StoppedError

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, LayerNotFoundError, StoreNotFoundError

ROWS = ds.RowRule(mask="mask")


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def network(tmp_path):
    return ds.open_network(Tower, in_shards(made(Tower), tmp_path / "weights"))


def swept(network, store, **options):
    layers = ds.watch(network, ["blocks.*", "head"], outputs=["blocks.*.o"])
    return ds.statistics_by_block(network, batches(), layers, store=store, rows=ROWS, **options)


def kept(network, store, **options):
    layers = ds.watch(network, ["blocks.*", "head"], outputs=["blocks.*.o"])
    return ds.accumulate(network, batches(), layers, store=store, rows=ROWS, **options)


def blocks_on_disk(store):
    moments = store / "moments" / "target"
    return {path.name.split(".")[1] for path in moments.glob("blocks.*")}


@pytest.mark.parametrize("folding", [ds.Folding(), ds.Folding(ds.HoldoutRule(0.0)), ds.Folding(shards=2)])
def test_moments_are_those_of_accumulate_one_block_at_a_time(network, folding, tmp_path):
    whole = kept(network, tmp_path / "whole", folding=folding)
    with swept(network, tmp_path / "sweep", folding=folding) as statistics:
        assert list(statistics) == list(whole)
        assert blocks_on_disk(tmp_path / "sweep") == set()
        for name in statistics:
            one, other = statistics[name], whole[name]
            assert np.array_equal(one.weight, other.weight)
            assert np.array_equal(one.inputs.second_moment, other.inputs.second_moment)
            assert (one.heldout is None) == (other.heldout is None)
            if one.heldout is not None:
                assert np.array_equal(one.heldout.second_moment, other.heldout.second_moment)
            if one.shards:
                assert [shard.count for shard in one.shards] == [shard.count for shard in other.shards]
            assert name == "head" or blocks_on_disk(tmp_path / "sweep") == {name.split(".")[1]}
        assert not (tmp_path / "sweep" / "weights").exists()
    assert blocks_on_disk(tmp_path / "sweep") == set()
    assert [path.name for path in (tmp_path / "sweep").rglob("*@*")] == []


def test_from_weights_to_the_compressed_network_in_one_sweep_stopped_anywhere(network, tmp_path):
    def compressed(folder, store, progress=None):
        with swept(network, store, progress=progress) as statistics:

            def pair(name):
                return ds.dalr(statistics[name], ridge=1e-3).at_rank(3)

            names = [name for name in statistics if name != "head"]
            pairs = {name: partial(pair, name) for name in names}
            ds.compress_into(network, pairs, folder, made_from="rank 3", progress=progress)

    whole = kept(network, tmp_path / "store")
    pairs = {
        name: partial(lambda name: ds.dalr(whole[name], ridge=1e-3).at_rank(3), name)
        for name in whole
        if name != "head"
    }
    ds.compress_into(network, pairs, tmp_path / "expected")
    for stop in (2, 7, 12, 20, 27):
        folder, store = tmp_path / f"small-{stop}", tmp_path / f"sweep-{stop}"
        with pytest.raises(StoppedError):
            compressed(folder, store, StopAfter(stop))
        assert not folder.exists()
        assert len(blocks_on_disk(store)) <= 2
        compressed(folder, store)
        assert same_files(folder, tmp_path / "expected") == []


def test_a_block_that_was_passed_is_gone(network, tmp_path):
    with swept(network, tmp_path / "sweep") as statistics:
        assert statistics["blocks.2.up"].inputs.count
        with pytest.raises(StoreNotFoundError, match=r"layer 'blocks\.0\.up': its moments were given up"):
            _ = statistics["blocks.0.up"]
        with pytest.raises(LayerNotFoundError, match="strange"):
            _ = statistics["strange"]


def test_once_it_is_left_it_gives_no_moments(network, tmp_path):
    with swept(network, tmp_path / "sweep") as statistics:
        assert statistics["blocks.0.up"].inputs.count
    for name in ("blocks.0.up", "blocks.2.up"):
        with pytest.raises(StoreNotFoundError, match=rf"layer '{name}': the sweep over the blocks is over"):
            _ = statistics[name]


def test_moments_that_are_to_be_kept_are_left_alone(network, tmp_path):
    kept(network, tmp_path / "store")
    before = files_of(tmp_path / "store")
    with (
        pytest.raises(InvalidInputError, match="holds moments of 'target' that were to be kept"),
        swept(network, tmp_path / "store"),
    ):
        pass
    assert files_of(tmp_path / "store") == before


def test_an_error_inside_leaves_what_the_next_call_resumes_from(network, tmp_path):
    with pytest.raises(LayerNotFoundError), swept(network, tmp_path / "sweep") as statistics:
        _ = [statistics[name] for name in ("blocks.1.up", "strange")]
    with swept(network, tmp_path / "sweep", progress=(progress := StopAfter(99))) as statistics:
        _ = statistics["blocks.1.up"]
    assert not any(title.startswith("block ") for title in progress.titles)


def test_after_a_sweep_that_was_stopped_all_moments_are_made(network, tmp_path):
    with pytest.raises(LayerNotFoundError), swept(network, tmp_path / "sweep") as statistics:
        _ = [statistics[name] for name in ("blocks.1.up", "strange")]
    whole, after = kept(network, tmp_path / "whole"), kept(network, tmp_path / "sweep")
    assert blocks_on_disk(tmp_path / "sweep") == blocks_on_disk(tmp_path / "whole")
    for name in whole:
        assert np.array_equal(after[name].inputs.second_moment, whole[name].inputs.second_moment)


def weighted(network, gradients, store, how, **options):
    layers = ds.watch(network, ["blocks.*"], gradients=gradients)
    rows = ds.RowRule(mask="mask", gradients=ds.GradientRule(draws=2))
    return how(network, batches(3), layers, store=store, rows=rows, **options)


@pytest.mark.parametrize("gradients", [["blocks.*"], ["blocks.2.*"]])
def test_with_gradients_blocks_come_from_the_last_one_to_the_first(gradients, network, tmp_path):
    whole = weighted(network, gradients, tmp_path / "whole", ds.accumulate)
    with weighted(network, gradients, tmp_path / "sweep", ds.statistics_by_block) as statistics:
        blocks = [name.split(".")[1] for name in statistics]
        assert blocks == sorted(blocks, reverse=True)
        assert sorted(statistics) == sorted(whole)
        for name in statistics:
            assert statistics[name].inputs.same_bits(whole[name].inputs)
            if name.startswith(gradients[0].removesuffix("*")):
                assert statistics[name].gradients.same_bits(whole[name].gradients)
            assert blocks_on_disk(tmp_path / "sweep") == {name.split(".")[1]}
        with pytest.raises(StoreNotFoundError, match=r"layer 'blocks.3.up': .* of an earlier block was asked for"):
            _ = statistics["blocks.3.up"].inputs
    assert blocks_on_disk(tmp_path / "sweep") == set()
    assert [path.name for path in (tmp_path / "sweep").rglob("*@*")] == []


def test_from_weights_to_a_network_compressed_by_gradients_in_one_sweep_stopped_anywhere(network, tmp_path):
    names = ["blocks.0.up", "blocks.2.o", "blocks.2.up"]

    def pair(statistics, name):
        return ds.dalr(statistics[name], variant="weighted", ridge=1e-3).at_rank(3)

    def compressed(folder, store, progress=None):
        with weighted(network, names, store, ds.statistics_by_block, progress=progress) as statistics:
            pairs = {name: partial(pair, statistics, name) for name in names}
            ds.compress_into(network, pairs, folder, made_from="rank 3", last_first=True, progress=progress)

    whole = weighted(network, names, tmp_path / "store", ds.accumulate)
    ds.compress_into(network, {name: partial(pair, whole, name) for name in names}, tmp_path / "expected")
    for stop in (5, 14, 19, 25):
        with pytest.raises(StoppedError):
            compressed(tmp_path / f"{stop}", tmp_path / f"store-{stop}", StopAfter(stop))
        compressed(tmp_path / f"{stop}", tmp_path / f"store-{stop}")
        assert same_files(tmp_path / "expected", tmp_path / f"{stop}") == []
