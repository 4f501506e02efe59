"""Tiles to moments: the moments of the rows, in the same bits whoever folded them, in memory that rows do not fill."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from rows_on_disk import rows_like, store_of, write

from dalr_stream.errors import NonFiniteError, StoreDamagedError, StoreError, StoreNotFoundError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.manifest import FILE, Manifest
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding, Threads
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.schedule import Watch, accumulate_layer

ROWS_PER_TILE = 4096  # at every width below 2048
HOLDOUT = HoldoutRule(0.2, seed=5)


@pytest.fixture(scope="module")
def rows():
    """A layer with one row a sample, one with three: eleven and thirty-one thousand rows."""
    return {"fc6": rows_like(11_000, 12), "tokens": np.maximum(rows_like(33_000, 5, seed=1), 0)}


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("store"), rows, 11_000)


def task_of(store, layer, holdout=HOLDOUT, **options):
    rule = Folding(holdout, **options).rule(store.rows("target", layer).features)
    return LaneTask(store.root, "target", layer, rule)


def accumulate(store, layer, workers=2, holdout=HOLDOUT, **options):
    return accumulate_layer(task_of(store, layer, holdout, **options), Threads(workers))


@pytest.mark.parametrize(("layer", "per_sample"), [("fc6", 1), ("tokens", 3)])
def test_accumulated_moments_are_those_of_the_rows(store, rows, layer, per_sample):
    split = accumulate(store, layer)
    apart = np.repeat(HOLDOUT.mask(np.arange(11_000)), per_sample)
    for found, part in ((split.training, rows[layer][~apart]), (split.heldout, rows[layer][apart])):
        exact = part.astype(np.float64)
        scale = np.sqrt(np.outer(exact.var(axis=0), exact.var(axis=0)))
        assert (found.count, found.samples) == (len(part), len(part) // per_sample)
        assert (np.abs(found.covariance - np.cov(exact.T, bias=True)) <= 1e-12 * scale).all()
        np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-13)
        assert np.array_equal(found.max_abs, np.abs(part).max(axis=0))
        assert np.array_equal(found.nonzero, np.count_nonzero(part, axis=0))


@pytest.mark.parametrize("layer", ["fc6", "tokens"])
def test_any_number_of_workers_gives_the_same_bits(store, layer):
    found = [accumulate(store, layer, workers) for workers in (1, 2, 3)]
    for other in found[1:]:
        assert other.training.same_bits(found[0].training)
        assert other.heldout.same_bits(found[0].heldout)


@pytest.mark.parametrize("size", [1000, 4097, 11_000])
@pytest.mark.parametrize("holdout", [HOLDOUT, HoldoutRule(0.0)])
def test_the_direct_route_gives_the_same_bits_from_other_batches(store, rows, size, holdout):
    with ThreadPoolExecutor(2) as executor:
        sink = FoldSink(Folding(holdout), executor)
        write(sink, rows, 11_000, size)
        sink.finish()
        direct = dict(sink.freeze())
    for layer in rows:
        stored = accumulate(store, layer, holdout=holdout)
        assert direct[layer].training.same_bits(stored.training)
        assert direct[layer].heldout.same_bits(stored.heldout)


def test_one_wide_lane_shared_by_two_workers_has_the_bits_of_one(tmp_path):
    """Above 2048 features there is one lane, and column blocks use the cores."""
    rows = {"wide": rows_like(300, 2050)}
    store = store_of(tmp_path, rows, 300)
    one, two = accumulate(store, "wide", 1), accumulate(store, "wide", 2)
    assert one.training.same_bits(two.training)
    apart = HOLDOUT.mask(np.arange(300))
    whole = Moments.of(rows["wide"][~apart])
    scale = np.sqrt(np.outer(whole.variance, whole.variance)) * whole.count
    assert (np.abs(one.training.scatter - whole.scatter) <= 1e-12 * scale).all()


def test_the_fast_mode_gives_the_same_bits_for_any_workers_and_on_the_direct_route(store, rows):
    one, two = (accumulate(store, "fc6", workers, precision="single") for workers in (1, 2))
    with ThreadPoolExecutor(2) as executor:
        sink = FoldSink(Folding(HOLDOUT, precision="single"), executor)
        write(sink, rows, 11_000, 500)
        sink.finish()
        direct = dict(sink.freeze())["fc6"]
    assert one.training.same_bits(two.training)
    assert one.training.same_bits(direct.training)
    assert one.heldout.same_bits(direct.heldout)
    assert not one.training.same_bits(accumulate(store, "fc6").training)


def test_every_tile_is_reported_once(store):
    done = []
    accumulate_layer(task_of(store, "fc6"), Threads(2), Watch(done.append))
    assert sorted(done) == [11_000 - 2 * ROWS_PER_TILE, ROWS_PER_TILE, ROWS_PER_TILE]


def test_fewer_tiles_than_lanes_is_no_trouble(tmp_path):
    rows = {"fc6": rows_like(3, 4)}
    split = accumulate(store_of(tmp_path, rows, 3), "fc6", holdout=HoldoutRule(0.0))
    assert split.training.same_bits(Moments.of(rows["fc6"]))


# --- refused ------------------------------------------------------------------------------------------------------


def test_a_domain_that_is_not_complete_is_refused(tmp_path):
    store = store_of(tmp_path, {"fc6": rows_like(9000, 4)}, 9000, finish=False)
    with pytest.raises(StoreError, match=r"'target' is not complete \(8192 samples are committed\): run the capture"):
        accumulate(store, "fc6")


def test_an_unknown_layer_is_refused(store):
    with pytest.raises(StoreNotFoundError, match="no layer 'fc9' on 'target': it has fc6, tokens"):
        accumulate(store, "fc9")


def test_a_damaged_tile_is_named(tmp_path):
    store = store_of(tmp_path, {"fc6": rows_like(9000, 4)}, 9000)
    chunk = tmp_path / "activations/target/fc6/c/1/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(bytes(data))
    with pytest.raises(StoreDamagedError, match="tile 1 of layer 'fc6' on 'target' is damaged"):
        accumulate(store, "fc6")


def test_nan_in_a_stored_tile_is_named_with_layer_and_tile(tmp_path):
    """Written by hand, with a true digest: a capture would not have let it in."""
    store_of(tmp_path, {"fc6": rows_like(9000, 4)}, 9000)
    array = zarr.open_array(tmp_path / "activations/target/fc6", mode="r+")
    array[5000, 2] = np.nan
    body = json.loads((tmp_path / FILE).read_text())["manifest"]
    tile = np.ascontiguousarray(array[ROWS_PER_TILE : 2 * ROWS_PER_TILE])
    body["domains"]["target"]["layers"]["fc6"]["tile_digests"][1] = zlib.crc32(tile.tobytes())
    (tmp_path / FILE).write_text(json.dumps({"digest": digest_of(body), "manifest": body}))
    assert Manifest.read(tmp_path).domains["target"].complete
    with pytest.raises(NonFiniteError, match=r"layer 'fc6' on 'target', tile 1: .* 1 NaN and 0 Inf in feature 2"):
        accumulate(ActivationStore(tmp_path), "fc6")


def test_when_one_lane_fails_the_others_end_before_the_call_does(tmp_path):
    """A lane that went on behind the caller's back would write checkpoints to a store that is no longer locked."""
    store, other_began, told = store_of(tmp_path, {"fc6": rows_like(60_000, 4)}, 60_000), threading.Event(), []

    def done(rows):
        told.append(rows)
        if len(told) == 1:
            other_began.wait(5)
            raise RuntimeError("a lane fails")
        other_began.set()
        time.sleep(0.05)

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="a lane fails"):
        accumulate_layer(task_of(store, "fc6"), Threads(2), Watch(done))
    assert threading.active_count() == threads
    assert len(told) < 15


# --- memory -------------------------------------------------------------------------------------------------------


MEASURE = r"""
    import re, sys
    from pathlib import Path
    from dalr_stream.storage.store import ActivationStore
    from dalr_stream.streaming.folding import Folding, Threads
    from dalr_stream.streaming.schedule import accumulate_layer
    from dalr_stream.streaming.lanes import LaneTask
    store = ActivationStore(sys.argv[1])
    split = accumulate_layer(LaneTask(store.root, "target", "fc6", Folding().rule(32)), Threads(2))
    assert split.training.count + split.heldout.count == int(sys.argv[2])
    print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_peak_memory_does_not_grow_with_the_rows(tmp_path):
    """A fresh process each: a tile for every lane against sixteen, 4 MB of rows against 67.

    Read from /proc: `ru_maxrss` survives exec, and would be the peak of the process that runs the tests. The allocator
    is told to give freed blocks back, so that what is measured is what was held: left alone, glibc keeps 10 % more.
    """
    peaks, environment = [], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for times in (1, 16):
        root, count = tmp_path / str(times), times * 8 * ROWS_PER_TILE
        store_of(root, {"fc6": rows_like(count, 32)}, count)
        command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(root), str(count)]
        run = subprocess.run(command, check=True, capture_output=True, env=environment)  # noqa: S603
        peaks.append(int(run.stdout))
    assert peaks[1] <= 1.1 * peaks[0]
