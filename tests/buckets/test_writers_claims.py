"""One writer at a time, without locks: claims that are refused, renewed, released and taken over."""

import json
import os
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from dying import Killed, process
from stores_in_buckets import accumulate, capture, contents, job, names

from dalr_stream.errors import StoreError, StoreLockedError
from dalr_stream.storage.buckets import claim
from dalr_stream.storage.buckets.process import _started, is_gone, this_process
from dalr_stream.storage.lock import locked
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.bucket import Bucket
from dalr_stream.storage.places.place import place_of

ELSEWHERE = {"name": "process 7 on another", "machine": "of another start", "pid": 7, "started": "1"}


@contextmanager
def another_process(root):
    """Look at the store as a process does that shares nothing with this one but the bucket."""
    bucket = place_of(root).bucket
    mine = dict(bucket.claims)
    bucket.claims.clear()
    try:
        yield
    finally:
        bucket.claims.clear()
        bucket.claims.update(mine)


def put_tile(by, path, data):
    by.put_tile(path.key, data)
    by.settle()


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(claim, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(claim, "_POLL_SECONDS", 0.05)


def test_a_second_writer_is_refused_and_the_first_is_named(store, monkeypatch):
    capture(store)
    with locked(place_of(store)), pytest.raises(StoreLockedError, match="is being written by this process"):
        capture(store)
    runs = {**this_process(), "name": "the one that runs this", "pid": os.getppid(), "started": _started(os.getppid())}
    with monkeypatch.context() as patch:
        patch.setattr(claim, "this_process", lambda: runs)
        holding = locked(place_of(store))
        holding.__enter__()
    with another_process(store), pytest.raises(StoreLockedError, match="by the one that runs this"):
        accumulate(store)
    holding.__exit__(None, None, None)
    accumulate(store)


def test_a_writer_elsewhere_that_renews_its_claim_is_waited_for_and_refused(store, short_lease, monkeypatch):  # noqa: ARG001
    capture(store)
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(claim, "this_process", lambda: ELSEWHERE)
        holding = locked(place_of(store))
        holding.__enter__()
    with another_process(store), pytest.raises(StoreLockedError, match="by process 7 on another"):
        accumulate(store)
    holding.__exit__(None, None, None)
    accumulate(store)


def test_a_claim_that_is_not_renewed_is_taken_over_and_its_owner_stops(store, short_lease, monkeypatch):  # noqa: ARG001
    job(store)
    held, root = contents(store), place_of(store)
    with monkeypatch.context() as patch:
        patch.setattr(claim, "this_process", lambda: ELSEWHERE)
        holding = locked(root)
        holding.__enter__()
        manifest = Manifest.read(root)
        stalled = dict(root.bucket.claims)
    with another_process(store):
        job(store)
    assert root.bucket.claims == stalled
    with pytest.raises(StoreLockedError, match="was taken over by another writer"):
        manifest.write(root)
    with pytest.raises(StoreLockedError, match="was taken over by another writer"):
        (root / "zarr.json").write_bytes(b"late")
    with pytest.raises(StoreLockedError, match="was taken over by another writer"):
        put_tile(claim.claim_to(root), root / "activations/target/0/c/0/0", b"late")
    holding.__exit__(None, None, None)
    assert contents(store) == held
    job(store)


def test_a_tile_of_the_writer_that_took_over_is_not_replaced_by_the_one_that_was_slow(store, short_lease, monkeypatch):  # noqa: ARG001
    """Were it slow by less than its lease: it learns of the other from the tile that is there already."""
    capture(store)
    root = place_of(store)
    with monkeypatch.context() as patch:
        patch.setattr(claim, "this_process", lambda: ELSEWHERE)
        holding = locked(root)
        holding.__enter__()
        slow = claim.claim_to(root)
    monkeypatch.setattr(slow, "require", lambda: None)
    with another_process(store), locked(root):
        put_tile(claim.claim_to(root), root / "tile", b"of the new one")
        with pytest.raises(StoreLockedError, match="was taken over"):
            put_tile(slow, root / "tile", b"of the old one")
    holding.__exit__(None, None, None)
    assert (root / "tile").read_bytes() == b"of the new one"


def test_a_claim_of_a_process_that_is_gone_is_taken_over_at_once(in_memory):
    with process(20), pytest.raises(Killed):
        job(in_memory)
    job(in_memory)


def test_writers_that_begin_at_once_are_one(store, monkeypatch):
    monkeypatch.setattr(claim, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claim, "_POLL_SECONDS", 0.05)
    outcomes = []
    barrier = threading.Barrier(4)

    def write(number):
        one = claim.Claim(place_of(store))
        one._me |= {"machine": f"machine {number}"}
        barrier.wait()
        try:
            one.take()
        except StoreLockedError:
            outcomes.append("refused")
        else:
            with one.beating():
                outcomes.append("took it")
                barrier.wait()
            return
        barrier.wait()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(outcomes) == [*["refused"] * 3, "took it"]


def test_a_server_that_ignores_conditions_is_refused_at_opening_and_nothing_is_left(in_s3, s3):
    s3.heeds_conditions = False
    try:
        with pytest.raises(StoreError, match=r"http://127.* ignores the conditions of a put"):
            capture(in_s3)
    finally:
        s3.heeds_conditions = True
    assert not list(place_of(in_s3).bucket.keys(place_of(in_s3).key))
    capture(in_s3)


@pytest.mark.parametrize("ignored", ["put_new", "put_over"])
def test_one_condition_ignored_is_enough(in_memory, ignored, monkeypatch):
    def put(bucket, key, data, *_):
        return bucket._put(key, data, "overwrite")

    monkeypatch.setattr(Bucket, ignored, put)
    with pytest.raises(StoreError, match="ignores the conditions of a put"):
        capture(in_memory)


def test_a_failed_command_is_swept_up_after(in_memory, monkeypatch):
    """What it put stays, as its last request may have been done after all; the next one to open the store looks."""
    capture(in_memory)
    before = names(in_memory)
    with monkeypatch.context() as patch:
        patch.setattr("dalr_stream.storage.records.record.digest_of_array", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            accumulate(in_memory)
    assert len(names(in_memory)) > len(before)
    capture(in_memory, domain="source", seed=2)
    assert not [name for name in names(in_memory) if name.startswith("moments")]


def test_a_manifest_is_written_by_the_writer_alone(in_memory):
    capture(in_memory)
    with pytest.raises(StoreLockedError, match="is not held for writing by this process"):
        Manifest.read(place_of(in_memory)).write(place_of(in_memory))


@pytest.mark.parametrize("state", [b"", b"{}", b"[1]", b'{"released": 1}', b"\xff"])
def test_a_claim_that_cannot_be_read_ends_with_its_lease(in_memory, state, short_lease):  # noqa: ARG001
    capture(in_memory)
    (place_of(in_memory) / "writer.lock").write_bytes(state)
    accumulate(in_memory)


def test_whether_a_process_runs_is_told_on_its_own_machine_alone():
    code = (
        "import json; from dalr_stream.storage.buckets.process import this_process; print(json.dumps(this_process()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)  # noqa: S603  # of this test
    assert is_gone(json.loads(ended.stdout)) is True
    assert is_gone(this_process()) is False
    assert is_gone(ELSEWHERE) is None
    assert is_gone({**this_process(), "started": "earlier"}) is True  # numbers of processes come again


def test_a_place_is_sent_without_its_claim(in_s3):
    capture(in_s3)
    with locked(place_of(in_s3)):
        assert pickle.loads(pickle.dumps(place_of(in_s3))) == place_of(in_s3)  # noqa: S301  # sent by this test
