"""A writer killed at any of its writes, before it or after it, leaves a store from which the same command goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from dying import Killed, held, process
from stores_in_buckets import accumulate, contents, job, names

from dalr_stream.errors import StoreError
from dalr_stream.storage.places.bucket import Bucket
from dalr_stream.storage.places.place import place_of
from dalr_stream.storage.removal import delete_activations, forget_moments


def again(root):
    """Replace records and rows: moments of another rule, then no rows."""
    accumulate(root, shards=2)
    delete_activations(place_of(root))


def taken_away(root):
    forget_moments(place_of(root), "target")


SCENARIOS = {"job": (lambda _: None, job), "again": (job, again), "taken away": (job, taken_away)}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_the_same_command_goes_on_to_the_same_bits_and_leaves_no_litter(in_memory, scenario, done, soak):
    prepare, act = SCENARIOS[scenario]

    def fresh(number):
        root = in_memory.replace("store.zarr", f"{number}.zarr")
        prepare(root)
        return root

    whole = fresh("whole")
    with process() as writes:
        act(whole)
    few = 6
    for at in range(len(writes)) if soak else [number * len(writes) // few for number in range(few)]:
        root = fresh(at)
        with process(at, done=done), suppress(Killed):
            act(root)
        held(root)  # whatever a reader finds is whole
        with process():
            act(root)
        assert contents(root) == contents(whole)
        assert names(root) == names(whole)


def test_a_late_listing_decides_nothing(in_memory, monkeypatch):
    """As late as can be: nothing is listed, ever."""
    job(in_memory)
    other = in_memory.replace("store.zarr", "late.zarr")
    monkeypatch.setattr(Bucket, "keys", lambda *_: [])
    monkeypatch.setattr(Bucket, "names", lambda *_: ([], []))
    monkeypatch.setattr(Bucket, "any_below", lambda *_: False)
    with process(25), suppress(Killed):
        job(other)
    with process():
        job(other)
    monkeypatch.undo()
    assert contents(other) == contents(in_memory)


def test_a_process_killed_at_any_time_goes_on_to_the_same_bits(in_s3, tmp_path, soak):
    job(tmp_path / "whole.zarr")
    draw = random.Random(3)  # noqa: S311  # moments of a kill
    command = [sys.executable, "-c", f"from stores_in_buckets import *\nwith small_tiles(): job('{in_s3}')"]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    for _ in range(20 if soak else 3):
        worker = subprocess.Popen(command, env=environment)  # noqa: S603  # of this test
        begun = time.monotonic()
        while worker.poll() is None and not held_by_anyone(in_s3) and time.monotonic() - begun < 60:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.5))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    subprocess.run(command, env=environment, check=True)  # noqa: S603  # of this test
    assert contents(in_s3) == contents(tmp_path / "whole.zarr")


def held_by_anyone(root):
    lock = place_of(root) / "writer.lock"
    try:
        return b"held" in lock.read_bytes()
    except (FileNotFoundError, StoreError):
        return False


def test_a_reader_beside_a_writer_sees_the_old_record_or_the_new_one(in_memory):
    import threading

    import numpy as np

    from dalr_stream.numerics.statistics.moments import Moments
    from dalr_stream.storage.records.moments import load_moments, save_moments

    path = place_of(in_memory) / "moments" / "target" / "fc6" / "training"
    each = [Moments.of(np.random.default_rng(seed).normal(size=(9, 4))) for seed in range(2)]
    save_moments(path, each[0], {})
    done = threading.Event()

    def write():
        for number in range(60):
            save_moments(path, each[number % 2], {})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        found = load_moments(path)
        assert any(found.same_bits(one) for one in each)
        seen += 1
    writer.join()
    assert seen
