"""Shards of one capture: random parts of the training samples whose exact sum is the training record."""

import dataclasses
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from soaking import in_soak
from stopping import StopAfter, StoppedError
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into, accumulate_stream
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, MemoryLimitError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import LaneState
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.records.moments import load_moments
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.strips import load_strip, save_strips
from dalr_stream.streaming.lanes import Pace

SAMPLES, WIDTH, K = 900, 24, 4
PLAIN = ds.Folding(ds.HoldoutRule(0.2), ds.Threads(1), pace=lambda: Pace(every_tiles=1))
DEALT = dataclasses.replace(PLAIN, shards=K)


pytestmark = pytest.mark.usefixtures("low_tiles")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5)).eval()


@pytest.fixture(scope="module")
def layers(model):
    return ds.network.select_layers(model, ["2"])


def batches(size=100):
    return list(torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1)).split(size))


@pytest.fixture(scope="module")
def captured(tmp_path_factory, model, layers):
    root = tmp_path_factory.mktemp("dealt") / "store"
    ds.capture(model, batches(), layers, root, domain="target")
    return root


@pytest.fixture
def store(tmp_path, captured):
    shutil.copytree(captured, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def expected(model, layers):
    """The direct way, every shard in one pass."""
    return accumulate_stream(model, batches(70), layers, folding=DEALT)


def assert_same(found, expected):
    assert found["2"].same_bits(expected["2"])
    assert found.heldout["2"].same_bits(expected.heldout["2"])
    assert [one.same_bits(two) for one, two in zip(found.shards["2"], expected.shards["2"], strict=True)] == [True] * K


def test_training_is_the_exact_sum_of_the_shards_and_what_is_folded_at_once_to_rounding(store, expected):
    assert expected["2"].same_bits(merge_all(expected.shards["2"]))
    whole = accumulate_stored(store, domain="target", folding=PLAIN)
    assert whole.shards == {}
    found, twin = expected["2"], whole["2"]
    assert (found.count, found.samples) == (twin.count, twin.samples)
    assert np.abs(found.scatter - twin.scatter).max() <= 1e-12 * np.abs(twin.scatter).max()
    assert np.abs(found.mean - twin.mean).max() <= 1e-12 * np.abs(twin.mean).max()
    assert np.array_equal(found.nonzero, twin.nonzero)
    assert np.array_equal(found.maximum, twin.maximum)
    assert expected.heldout["2"].same_bits(whole.heldout["2"])


def test_each_shard_is_a_random_part_of_the_training_samples(captured, expected):
    """The naive twin: deal the samples by the documented rule and take the moments of each part."""
    tiles = [ActivationStore(captured).read_tile("target", "2", tile) for tile in range(4)]
    rows = np.concatenate([tile.rows for tile in tiles])
    dealt = DEALT.holdout.assign(np.arange(SAMPLES), K)
    for number, shard in enumerate(expected.shards["2"]):
        twin = ds.Moments.of(rows[dealt == number])
        assert shard.count == twin.count
        assert np.abs(shard.scatter - twin.scatter).max() <= 1e-12 * np.abs(twin.scatter).max()
    counts = np.array([shard.count for shard in expected.shards["2"]])
    assert counts.sum() == expected["2"].count
    assert np.all(np.abs(counts - SAMPLES * 0.8 / K) < 4 * np.sqrt(SAMPLES * 0.2))  # four standard deviations
    where = [np.flatnonzero(dealt == number).mean() for number in range(K)]
    assert np.all(np.abs(np.array(where) - SAMPLES / 2) < 100)  # spread over the capture, not runs of it


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("shards", [2, 7])
def test_dealing_leaves_no_sample_out_and_keeps_the_held_out_ones(share, shards):
    rule, samples = HoldoutRule(share, seed=5), np.arange(20_000)
    dealt = rule.assign(samples, shards)
    assert np.array_equal(dealt == shards, rule.mask(samples))
    sizes = np.bincount(dealt, minlength=shards + 1)[:shards]
    assert np.all(np.abs(sizes - sizes.mean()) < 5 * np.sqrt(sizes.mean()))


@pytest.mark.parametrize("workers", [1, 3])
def test_any_way_gives_the_same_bits(store, expected, workers):
    folding = dataclasses.replace(DEALT, workers=ds.Threads(workers))
    assert_same(accumulate_stored(store, domain="target", folding=folding), expected)
    delete_activations(store)
    assert_same(accumulate_stored(store, domain="target", folding=folding), expected)  # nothing is folded again


@pytest.mark.parametrize("reports", [1, 7, 19, *in_soak(3, 12)])
def test_an_accumulation_stopped_anywhere_ends_in_the_same_bits(store, expected, reports):
    stop, again = StopAfter(reports), StopAfter(0)
    with pytest.raises(StoppedError):
        accumulate_stored(store, domain="target", folding=DEALT, progress=stop)
    assert_same(accumulate_stored(store, domain="target", folding=DEALT, progress=again), expected)
    assert len(stop.titles) + len(again.titles) == K + 1 + 1  # only the one that was stopped is begun again
    assert not (store / "unfinished/target/2").exists()
    assert verify_store(store).findings == ()


@pytest.mark.parametrize("reports", [2, 8])
def test_a_direct_run_stopped_anywhere_ends_in_the_same_bits(tmp_path, model, layers, expected, reports):
    arguments = (tmp_path / "direct", model, batches(), layers)
    with pytest.raises(StoppedError):
        accumulate_into(*arguments, domain="target", folding=DEALT, progress=StopAfter(reports))
    assert_same(accumulate_into(*arguments, domain="target", folding=DEALT), expected)
    assert verify_store(tmp_path / "direct").findings == ()


@pytest.mark.parametrize("heights", [(7,), (1, 8, 16, 23)])
def test_strips_of_the_shards_add_up_to_the_same_bits(store, expected, tmp_path, heights):
    """The sum where the whole does not fit: the same tree, a few rows of the matrix at a time."""
    accumulate_stored(store, domain="target", folding=DEALT)
    shards = [store / f"moments/target/2/shard-{number}" for number in range(K)]
    edges = [0, *heights, WIDTH]
    cut = [Strip(first, stop) for first, stop in pairwise(edges)]
    sums = (LaneState(merge_all(load_strip(shard, strip) for shard in shards), None) for strip in cut)
    save_strips({"training": tmp_path / "sum"}, WIDTH, sums, {})
    assert load_moments(tmp_path / "sum").same_bits(expected["2"])


def test_a_wide_layer_under_a_limit_is_dealt_in_strips_to_the_same_bits(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(8, 2100), nn.ReLU(), nn.Linear(2100, 3)).eval()
    layers = ds.network.select_layers(wide, ["2"])
    ds.capture(wide, batches()[:5], layers, tmp_path / "wide", domain="target")
    tight = dataclasses.replace(DEALT, shards=2, memory_limit_bytes=119 * 2**20)
    stop, again = StopAfter(5), StopAfter(0)
    with pytest.raises(StoppedError):
        accumulate_stored(tmp_path / "wide", domain="target", folding=tight, progress=stop)
    found = accumulate_stored(tmp_path / "wide", domain="target", folding=tight, progress=again)
    twin = accumulate_stream(wide, batches()[:5], layers, folding=dataclasses.replace(DEALT, shards=2))
    assert found["2"].same_bits(twin["2"])
    assert all(one.same_bits(two) for one, two in zip(found.shards["2"], twin.shards["2"], strict=True))
    assert found.heldout["2"].same_bits(twin.heldout["2"])


def test_another_number_of_shards_is_another_rule(store, expected):
    accumulate_stored(store, domain="target", folding=DEALT)
    folder = store / "moments/target/2"
    fewer = accumulate_stored(store, domain="target", folding=dataclasses.replace(DEALT, shards=2))
    assert len(fewer.shards["2"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["heldout", "shard-0", "shard-1", "training"]
    accumulate_stored(store, domain="target", folding=PLAIN)
    assert sorted(path.name for path in folder.iterdir()) == ["heldout", "training"]
    assert list(StoreView.open(store).shards("target", "2")) == []
    assert_same(accumulate_stored(store, domain="target", folding=DEALT), expected)


def test_a_killed_accumulation_of_shards_leaves_none_behind_the_moments_of_before(store):
    accumulate_stored(store, domain="target", folding=PLAIN)
    moments = store / "moments" / "target" / "2"
    before = {path.name for path in moments.iterdir()}
    with pytest.raises(StoppedError):
        accumulate_stored(store, domain="target", folding=DEALT, progress=StopAfter(12))
    assert {path.name for path in moments.iterdir()} > before
    accumulate_stored(store, domain="target", folding=PLAIN)
    assert {path.name for path in moments.iterdir()} == before


def test_a_damaged_shard_and_a_shard_of_something_else_are_found(store):
    accumulate_stored(store, domain="target", folding=DEALT)
    folder = store / "moments/target/2"
    assert len(StoreView.open(store).shards("target", "2")) == K
    shutil.rmtree(folder / "shard-1")
    shutil.copytree(folder / "shard-0", folder / "shard-1")
    findings = "; ".join(map(str, verify_store(store).findings))
    assert "shard-1' holds the record of 'target/2/shard-0', moved here" in findings
    shutil.rmtree(folder / "shard-1")
    with pytest.raises(FingerprintMismatchError, match="shard-1' is not of the training record beside it"):
        StoreView.open(store).shards("target", "2")


def test_merged_stores_have_their_captures_for_shards(tmp_path, model, layers):
    parts = batches()
    for number, part in enumerate((parts[:4], parts[4:])):
        accumulate_into(tmp_path / str(number), model, part, layers, domain="target", folding=DEALT)
    ds.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "both")
    shards = StoreView.open(tmp_path / "both").shards("target", "2")
    assert sorted(shard.samples for shard in shards) == sorted(
        StoreView.open(tmp_path / name).moments("target", "2").samples for name in "01"
    )
    assert verify_store(tmp_path / "both").findings == ()


def test_nothing_held_out_leaves_an_empty_record(store):
    folding = dataclasses.replace(DEALT, holdout=ds.HoldoutRule(0.0))
    found = accumulate_stored(store, domain="target", folding=folding)
    assert found["2"].samples == SAMPLES
    assert list(found.heldout) == []
    assert StoreView.open(store).heldout("target", None, "2") is None


def test_what_is_not_possible_is_refused(store, model, layers):
    with pytest.raises(InvalidInputError, match=r"shards must be 1 .* got 0"):
        ds.Folding(shards=0)
    with pytest.raises(
        InvalidInputError, match="layer after layer keep their moments whole, got shards=4: leave it out"
    ):
        ds.compress_sequentially(model, batches(), {"0": ds.LayerChoice("svd", 1)}, folding=DEALT)
    pairs = ds.accumulate_cross(model, model, batches(), layers, folding=DEALT)
    assert merge_all(pairs.shards["2"]).same_bits(pairs["2"])
    tight = dataclasses.replace(DEALT, memory_limit_bytes=10_000)
    with pytest.raises(MemoryLimitError, match="keep no shards"):
        accumulate_stored(store, domain="target", folding=tight)
