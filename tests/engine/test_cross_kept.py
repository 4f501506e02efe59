"""Cross moments in a store: the bits of those in memory, whatever stopped or merged them, and nothing run twice."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from pairs import Calls, compressed_of, data, network
from stopping import StopAfter, StoppedError

import dalr_stream as ds
from dalr_stream.engine.cross.accumulate import accumulate_cross, estimate_cross
from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, MemoryLimitError
from dalr_stream.storage.manifest import Manifest
from dalr_stream.streaming.lanes import Pace

LATER = ["2", "4"]
HELD = ds.Folding(ds.HoldoutRule(0.2, seed=3), ds.Threads(1))
OFTEN = dataclasses.replace(HELD, pace=lambda: Pace(every_tiles=1))


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def original():
    return network()


@pytest.fixture
def compressed(original):
    return compressed_of(original)


@pytest.fixture
def layers(original):
    return ds.network.select_layers(original, LATER)


def same(one, other):
    assert list(one) == list(other)
    parts = [(one, other), (one.heldout, other.heldout)]
    return all(mine[name].same_bits(its[name]) for mine, its in parts for name in one)


def test_kept_they_are_the_bits_of_those_in_memory_and_the_twins_numbers(original, compressed, layers, tmp_path):
    batches = data().split(70)
    kept = accumulate_cross(original, compressed, batches, layers, store=tmp_path / "c", folding=HELD)
    assert same(kept, accumulate_cross(original, compressed, batches, layers, folding=HELD))
    training = ~HELD.holdout.mask(np.arange(300))
    with torch.inference_mode():
        x = torch.relu(compressed[:2](data())).double().numpy()[training]
        z = original[:3](data()).double().numpy()[training]
    about_zero, about_means = oracles.cross_moments(x.T, z.T)
    np.testing.assert_allclose(kept["2"].cross_gram, about_zero, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(kept["2"].cross_scatter, about_means, rtol=1e-5, atol=1e-4)
    assert kept["2"].count == training.sum()
    assert verify_store(tmp_path / "c").findings == ()


def test_a_second_call_loads_the_batches_and_runs_neither_network(original, compressed, layers, tmp_path):
    def accumulate(batches):
        with Calls(batches, original, compressed) as calls:
            found = accumulate_cross(original, compressed, batches, layers, store=tmp_path / "c", folding=HELD)
        return {name: found[name] for name in found}, calls.of

    first, runs = accumulate(data().split(70))
    again, none = accumulate(data().split(70))
    assert runs[1:] == [2] * 4
    assert none == [0] * 5
    assert all(first[name].same_bits(again[name]) for name in LATER)
    other, runs = accumulate(data(seed=9).split(70))
    assert runs[1:] == [2] * 4
    assert not other["2"].same_bits(first["2"])
    expected = accumulate_cross(original, compressed, data(seed=9).split(70), layers, folding=HELD)
    assert all(other[name].same_bits(expected[name]) for name in LATER)


@pytest.mark.parametrize("reports", [1, 3, 5])
def test_stopped_anywhere_it_resumes_to_the_same_bits_and_runs_no_batch_twice(
    original, compressed, layers, tmp_path, reports
):
    batches = data().split(50)
    expected = accumulate_cross(original, compressed, batches, layers, folding=HELD)
    with pytest.raises(StoppedError):
        accumulate_cross(
            original, compressed, batches, layers, store=tmp_path / "c", folding=OFTEN, progress=StopAfter(reports)
        )
    with Calls(batches, original, compressed) as calls:
        found = accumulate_cross(original, compressed, batches, layers, store=tmp_path / "c", folding=OFTEN)
    assert calls.of[:reports] == [0] * reports
    assert calls.of[reports + 1 :] == [2] * (len(batches) - reports - 1)  # on the first one more is looked at
    assert same(found, expected)
    assert not (tmp_path / "c" / "unfinished").exists() or not any((tmp_path / "c" / "unfinished").rglob("index"))


KILLED = """
import os, signal, sys
from pairs import compressed_of, data, network
import dalr_stream as ds
from dalr_stream.streaming.lanes import Pace

class Killed(list):
    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

original = network()
layers = ds.network.select_layers(original, ["2", "4"])
folding = ds.Folding(ds.HoldoutRule(0.2, seed=3), ds.Threads(1), pace=lambda: Pace(every_tiles=1))
batches = Killed(data().split(50))
ds.accumulate_cross(original, compressed_of(original), batches, layers, store=sys.argv[1], folding=folding)
"""


def test_a_process_killed_twice_leaves_what_a_third_resumes_to_the_same_bits(original, compressed, layers, tmp_path):
    for at in (2, 4):
        killed = subprocess.run(  # noqa: S603  # this very file
            [sys.executable, "-c", KILLED, str(tmp_path / "c"), str(at)], cwd=Path(__file__).parent, check=False
        )
        assert killed.returncode == -signal.SIGKILL
    batches = data().split(50)
    with Calls(batches, original) as calls:
        found = accumulate_cross(original, compressed, batches, layers, store=tmp_path / "c", folding=OFTEN)
    assert calls.of[:4] == [0] * 4
    assert calls.of[5:] == [1]
    assert same(found, accumulate_cross(original, compressed, batches, layers, folding=HELD))
    assert verify_store(tmp_path / "c").findings == ()


def test_under_a_limit_layers_have_a_pass_each_or_are_refused_with_figures(original, compressed, layers, tmp_path):
    one, two = (estimate_cross(compressed, some, folding=HELD).peak_bytes for some in (layers[:1], layers))
    assert one < two
    limited = dataclasses.replace(HELD, memory_limit_bytes=(one + two) // 2)
    assert estimate_cross(compressed, layers, folding=limited).groups == (("2@cross",), ("4@cross",))
    with Calls(data().split(100), original) as calls:
        found = accumulate_cross(original, compressed, data().split(100), layers, store=tmp_path / "c", folding=limited)
    assert calls.of[1:] == [2, 2]
    assert same(found, accumulate_cross(original, compressed, data().split(100), layers, folding=HELD))
    tight = dataclasses.replace(HELD, memory_limit_bytes=1000)
    with pytest.raises(MemoryLimitError, match=r"layer '2@cross': folding 13 features needs .* keep no held-out share"):
        accumulate_cross(original, compressed, data().split(100), layers, folding=tight)


def test_shards_add_up_to_the_training_record(original, compressed, layers, tmp_path):
    sharded = dataclasses.replace(HELD, shards=3)
    for where in (None, tmp_path / "c"):
        found = accumulate_cross(original, compressed, data().split(70), layers, store=where, folding=sharded)
        first, second, third = found.shards["2"]
        assert (first + second + third).same_bits(found["2"])
        assert first.input_features == 8
    assert verify_store(tmp_path / "c").findings == ()


def test_merged_in_any_order_they_are_the_same_and_one_taken_out_was_never_there(
    original, compressed, layers, tmp_path
):
    for number in range(3):
        batches = data(seed=number).split(50)
        accumulate_cross(original, compressed, batches, layers, store=tmp_path / str(number), folding=HELD)
    stores = [tmp_path / str(number) for number in range(3)]
    merged = merge(stores, tmp_path / "all")
    merge(stores[::-1], tmp_path / "backwards")
    views = [ds.open_store(tmp_path / name).cross() for name in ("all", "backwards")]
    assert same(*views)
    assert views[0]["2"].count + views[0].heldout["2"].count == 900
    total = sum((ds.open_store(store).cross()["2"] for store in stores[1:]), ds.open_store(stores[0]).cross()["2"])
    np.testing.assert_allclose(views[0]["2"].cross_gram, total.cross_gram, rtol=1e-12, atol=1e-9)
    last = next(shard.name for shard in merged.shards if shard.root == stores[2])
    merge([tmp_path / "all"], tmp_path / "all", without=[last])
    merge(stores[:2], tmp_path / "two")
    assert same(*(ds.open_store(tmp_path / name).cross() for name in ("all", "two")))
    assert verify_store(tmp_path / "all").findings == ()


def test_a_network_that_changed_is_named(original, compressed, layers, tmp_path):
    root = tmp_path / "c"
    batches = data().split(70)
    accumulate_cross(original, compressed, batches, layers, store=root, folding=HELD)
    other = compressed_of(original, rank=3)
    with pytest.raises(FingerprintMismatchError, match=r"cross moments of the compressed network with fingerprint"):
        accumulate_cross(original, other, batches, layers, store=root, folding=HELD)
    with torch.no_grad():
        original[2].bias[0] += 1.0
    with pytest.raises(FingerprintMismatchError, match=r"cross moments of the original network with fingerprint"):
        accumulate_cross(original, compressed, batches, layers, store=root, folding=HELD)
    ds.accumulate(compressed, batches, layers, store=tmp_path / "one")
    with pytest.raises(FingerprintMismatchError, match="is the store of one network"):
        accumulate_cross(original, compressed, batches, layers, store=tmp_path / "one", folding=HELD)
    accumulate_cross(original, other, data(seed=5).split(70), layers, store=tmp_path / "d", folding=HELD)
    with pytest.raises(FingerprintMismatchError, match="merge captures of the same weights"):
        merge([root, tmp_path / "d"], tmp_path / "all")


def test_a_layer_whose_nodes_were_pruned_is_named(original, tmp_path):
    nodes = ds.accumulate(original, data().split(70), ds.watch(original, ["0", "2"], example=data(8)))["0"]
    small = ds.compress(original, {"0": ds.spectral(nodes).at_size(5)}, example=data(8))
    batches = data().split(70)
    found = accumulate_cross(original, small, batches, ds.network.select_layers(original, ["2"]), store=tmp_path / "c")
    assert (found["2"].input_features, found["2"].output_features) == (5, 5)
    with pytest.raises(InvalidInputError, match=r"layer '0': gives 8 outputs in the original and 5 in the compressed"):
        accumulate_cross(original, small, batches, ds.network.select_layers(original, ["0"]))


def test_damage_is_found(original, compressed, layers, tmp_path):
    root = tmp_path / "c"
    accumulate_cross(original, compressed, data().split(70), layers, store=root, folding=HELD)
    array = root / "moments" / "target" / "2@cross" / "training" / "scatter"
    (chunk,) = [path for path in (array / "c").rglob("*") if path.is_file()]
    chunk.write_bytes(chunk.read_bytes()[:-8] + b"\0" * 8)
    assert [finding.part for finding in verify_store(root).findings] == ["moments/target/2@cross/training"]
    shutil.rmtree(root / "moments" / "target" / "4@cross" / "heldout")
    assert len(verify_store(root).findings) == 2
    again = accumulate_cross(original, compressed, data().split(70), layers, store=root, folding=HELD)
    assert same(again, accumulate_cross(original, compressed, data().split(70), layers, folding=HELD))
    assert Manifest.read(root).domains["target"].complete


def test_solved_from_the_store_they_give_what_memory_gives(original, compressed, layers, tmp_path):
    batches = data().split(70)
    found = accumulate_cross(original, compressed, batches, layers, store=tmp_path / "c", folding=HELD)
    store = ds.open_store(tmp_path / "c")
    weight, bias = store.weights("2")
    mine = ds.dalr(*ds.network.weights_of(compressed, "2"), found["2"])
    its = ds.dalr(weight, bias, store.cross()["2"])
    np.testing.assert_array_equal(mine.at_rank(2).up, its.at_rank(2).up)
    assert its.diagnostics.source == "cross"


def test_torch_folds_joint_rows_on_a_device(original, compressed, layers):
    batches = data().split(70)
    by_torch = accumulate_cross(original, compressed, batches, layers, folding=dataclasses.replace(HELD, device="cpu"))
    by_numpy = accumulate_cross(original, compressed, batches, layers, folding=HELD)
    np.testing.assert_allclose(by_torch["2"].joint.scatter, by_numpy["2"].joint.scatter, rtol=1e-9, atol=1e-9)


def test_checkpoints_that_were_left_beside_kept_moments_go(original, compressed, layers, tmp_path):
    """Killed once the moments were kept, and before the checkpoints were removed: nobody needs them."""
    kept = accumulate_cross(original, compressed, data().split(70), layers, store=tmp_path / "c", folding=HELD)
    left = tmp_path / "c/unfinished/target/@direct-0/index"
    left.mkdir(parents=True)
    again = accumulate_cross(original, compressed, data().split(70), layers, store=tmp_path / "c", folding=HELD)
    assert same(kept, again)
    assert not (tmp_path / "c/unfinished").exists()
