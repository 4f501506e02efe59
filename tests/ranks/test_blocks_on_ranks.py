"""A network that goes block by block on several ranks: the store of one process, to the bit, whoever was killed."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from launching import launch
from rank_job import deep_network
from soaking import in_soak

import dalr_stream as ds
from dalr_stream.engine.blocks.accumulate import block_rows
from dalr_stream.progress import Silent
from dalr_stream.streaming.ranks.link import Alone, Message

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "blocks"))
from block_networks import files_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file that the network is read from."""
    path = tmp_path_factory.mktemp("weights") / "deep.safetensors"
    ds.network.save_weights(deep_network(), path)
    return {"WEIGHTS": str(path), "BATCHES": "7", "PACE": "2"}


@pytest.fixture(scope="module")
def expected(weights, tmp_path_factory):
    """The store of one process, by segments or not."""
    folder = tmp_path_factory.mktemp("one")

    def one(segment, **settings):
        store = folder / f"{segment}-{'-'.join(settings.values())}"
        if not store.exists():
            ended = launch(store, "blocks", 1, SEGMENT=segment, **weights, **settings)
            assert ended.codes == [0], ended.errors
        return store

    return one


def same_files(one, other):
    """Return the names of files that differ; of JSON what is in them counts, and its order does not."""
    found, expected = (
        {name: json.loads(data) if name.endswith(".json") else data for name, data in files_of(store).items()}
        for store in (one, other)
    )
    return [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]


@pytest.mark.parametrize(
    ("segment", "ranks", "loader"),
    [("2", 3, "dealing"), *in_soak(("0", 2, "plain"), ("1", 4, "plain"), ("5", 2, "plain"), ("0", 5, "dealing"))],
)
def test_ranks_leave_the_store_of_one_process(weights, expected, tmp_path, segment, ranks, loader):
    ended = launch(tmp_path / "store", "blocks", ranks, SEGMENT=segment, LOADER=loader, **weights)
    assert ended.codes == [0] * ranks, ended.errors
    assert same_files(tmp_path / "store", expected(segment)) == []


@pytest.mark.parametrize(("segment", "die"), [("2", "1:3"), ("0", "0:4"), *in_soak(("2", "0:5"), ("0", "1:1"))])
def test_a_rank_killed_within_a_block_and_another_number_of_ranks_resumes(weights, expected, tmp_path, segment, die):
    store = tmp_path / "store"
    third = store / "unfinished" / "target" / "@stream-2"
    ended = launch(store, "blocks", 2, SEGMENT=segment, DIE=die, DIE_WITH=str(third), **weights)
    assert sorted(ended.codes) == [-9, 1], ended.errors
    assert third.exists()
    assert not (third.parent / "@stream-0").exists()
    ended = launch(store, "blocks", 3, SEGMENT=segment, LOADER="dealing", **weights)
    assert ended.codes == [0] * 3, ended.errors
    assert same_files(store, expected(segment)) == []


@pytest.mark.parametrize("segment", ["2", *in_soak("0")])
def test_gradients_go_back_on_ranks_of_which_one_was_killed(weights, expected, tmp_path, segment):
    store, settings = tmp_path / "store", {**weights, "GRADIENTS": "1"}
    back = store / "unfinished" / "target" / "@back-0"
    ended = launch(store, "blocks", 2, SEGMENT=segment, DIE="1:3", DIE_WITH=str(back), **settings)
    assert ended.codes == [1, -9], ended.errors
    ended = launch(store, "blocks", 3, SEGMENT=segment, **settings)
    assert ended.codes == [0] * 3, ended.errors
    assert same_files(store, expected(segment, GRADIENTS="1")) == []


@pytest.mark.parametrize(("segment", "die"), [("2", "1:3"), *in_soak(("0", "0:4"))])
def test_one_blocks_moments_at_a_time_with_a_rank_killed_within_a_block(weights, tmp_path, segment, die):
    found = []
    third = tmp_path / "store" / "unfinished" / "target" / "@stream-2"
    for store, ranks in (("one", (1,)), ("store", (2, 3))):
        into = {"INTO": str(tmp_path / f"small-{store}"), "DIE": die, "DIE_WITH": str(third)}
        for count in ranks:
            ended = launch(tmp_path / store, "sweep", count, SEGMENT=segment, LOADER="dealing", **weights, **into)
            killed = count == 2
            assert sorted(ended.codes) == ([-9, 1] if killed else [0] * count), ended.errors
            into.pop("DIE", None)
        found.append(files_of(tmp_path / f"small-{store}"))
        assert not list((tmp_path / store).glob("moments/target/*"))
        assert not list((tmp_path / store).rglob("@*"))
    assert found[0] == found[1]


class Second(Alone):
    """Rank 1 of two, of which the first agrees to everything."""

    rank, ranks = 1, 2

    def receive(self, rank):  # noqa: ARG002  # as links have it
        return Message(defaultdict(lambda: ANY))


def test_a_rank_leaves_folders_that_another_may_be_about_to_write_to(tmp_path):
    model, batches = deep_network(), [torch.randn(5, 12), torch.randn(5, 12)]
    layers = ds.watch(model, ["two.0"], gradients=["two.0"])
    rows = ds.RowRule(gradients=ds.GradientRule())
    feed = block_rows(
        model, batches, layers, tmp_path, domain="target", blocks=True, rows=rows, progress=Silent(), link=Second()
    )
    made = tmp_path / "unfinished" / "target"
    made.mkdir(parents=True)
    assert feed._way_back is not None  # proved through records of its own, which it removes
    assert made.is_dir()
    assert not list(made.iterdir())


@pytest.mark.soak
def test_ranks_under_a_memory_limit_share_sums_and_one_process_resumes(weights, tmp_path, monkeypatch):
    store, wide = tmp_path / "store", {"WIDE": "1100", "WEIGHTS": str(tmp_path / "wide.safetensors")}
    monkeypatch.setenv("WIDE", "1100")
    ds.network.save_weights(deep_network(), Path(wide["WEIGHTS"]))
    die = {"DIE": "1:2", "DIE_WITH": str(store / "unfinished" / "target" / "@stream-1")}
    ended = launch(store, "blocks", 2, SEGMENT="0", LIMIT="140", **{**weights, **wide}, **die)
    assert ended.codes == [1, -9], ended.errors
    ended = launch(store, "blocks", 1, SEGMENT="0", **{**weights, **wide})
    assert ended.codes == [0], ended.errors
    ended = launch(tmp_path / "one", "blocks", 1, SEGMENT="0", **{**weights, **wide})
    assert ended.codes == [0], ended.errors
    assert same_files(store, tmp_path / "one") == []


def test_ranks_that_do_not_see_one_store_are_refused_before_the_first_batch(weights, tmp_path):
    ended = launch(tmp_path / "store", "blocks", 2, OWN="1", **weights)
    assert ended.codes == [1, 1]
    assert "rank 1 does not see in" in ended.errors[1]
    assert "give all ranks one folder on a disk that they share, or a bucket" in ended.errors[0]
    assert not list(tmp_path.rglob("@*"))


def test_ranks_with_other_blocks_are_refused(weights, tmp_path):
    ended = launch(tmp_path / "store", "blocks", 2, BLOCKS="two", **weights)
    assert ended.codes == [1, 1]
    assert "list of blocks" in ended.errors[0]
