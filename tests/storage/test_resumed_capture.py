"""A capture that was stopped, anywhere, goes on to the same files: nothing lost, nothing doubled."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    WIDTHS,
    Killed,
    assert_holds,
    batches_of,
    capture,
    files_of,
    network,
    rows_for,
)

from dalr_stream.errors import (
    FingerprintMismatchError,
)
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer

pytestmark = pytest.mark.usefixtures("quick_stores")


def capture_until(root, batches, dies, *, stop_after=None):
    """Capture until `dies` says so of a manifest that was about to be written, or for `stop_after` batches."""
    write = Manifest.write

    def checked(manifest, folder):
        if dies(manifest):
            raise Killed
        write(manifest, folder)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(Manifest, "write", checked)
        capture(root, batches, stop_after=stop_after)


def tear(root, *, keep):
    """Damage what was never committed, as a power cut may: chunks beyond the manifest are cut in half."""
    layers = Manifest.read(root).domains.get("target")
    for name in WIDTHS:
        committed = len(layers.layers[name].tile_digests) if layers and name in layers.layers else 0
        for chunk in (root / "activations" / "target" / name / "c").glob("*/0"):
            if int(chunk.parent.name) >= committed:
                chunk.write_bytes(chunk.read_bytes()[: 0 if not keep else 20])


@settings(max_examples=14)
@given(
    st.integers(1, 120),
    st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    st.sampled_from([1, 3]),
    st.data(),
)
def test_a_writer_abandoned_at_any_batch_or_before_any_commit_resumes_to_the_same_files(
    scratch, samples, sizes, per_sample, data
):
    rows = rows_for(samples, per_sample)
    batches = list(batches_of(rows, sizes, per_sample))
    whole, root = scratch(), scratch()
    capture(whole, batches)
    for _ in range(data.draw(st.integers(1, 3))):
        stop = data.draw(st.integers(0, len(batches)))
        commits = data.draw(st.integers(0, 12))
        written = []

        def dies(manifest, written=written, commits=commits):
            written.append(manifest)
            return len(written) > commits

        capture_until(root, batches, dies, stop_after=stop)
        if (root / "manifest.json").exists():
            tear(root, keep=data.draw(st.booleans()))
    capture(root, batches)
    assert files_of(root) == files_of(whole)
    assert_holds(root, rows)


def varying(counts, sizes):
    """Batches of the given numbers of samples, in which sample i has counts[i] rows in one layer, 1 in the other."""
    counts = np.asarray(counts)
    of_fc6 = np.concatenate([[0], np.cumsum(counts)])
    fc6, head = rows_for(of_fc6[-1], layers=["fc6"])["fc6"], rows_for(len(counts))["classifier.0"]
    start = turn = 0
    while start < len(counts):
        stop = min(start + sizes[turn % len(sizes)], len(counts))
        rows = {"fc6": fc6[of_fc6[start] : of_fc6[stop]], "classifier.0": head[start:stop]}
        ones = np.ones(stop - start, np.int64)
        yield RowBatch(stop - start, f"{start}-{stop}", rows, {"fc6": counts[start:stop], "classifier.0": ones})
        start, turn = stop, turn + 1


@settings(max_examples=14)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    st.data(),
)
def test_where_samples_differ_an_abandoned_writer_resumes_to_the_same_files_too(scratch, counts, sizes, data):
    batches = list(varying(counts, sizes))
    whole, root = scratch(), scratch()
    capture(whole, batches)
    for _ in range(data.draw(st.integers(1, 3))):
        capture_until(root, batches, lambda _: False, stop_after=data.draw(st.integers(0, len(batches))))
    with open_writer(root, "target", network()) as writer:
        held = list(writer.held)
        assert writer.complete or held == [batch.samples for batch in batches[: writer.committed_batches]]
        for number in range(max(len(held) - 1, 0), len(batches)):  # as a loader that begins in the middle does
            if not writer.skip(number, batches[number].samples, batches[number].digest):
                writer.write(batches[number])
        writer.finish()
    assert files_of(root) == files_of(whole)
    store = ActivationStore(root)
    tiles = [store.read_tile("target", "fc6", tile) for tile in range(store.tiles("target", "fc6"))]
    samples = [tile.samples for tile in tiles]
    assert np.concatenate([[], *samples]).tolist() == np.repeat(np.arange(len(counts)), counts).tolist()


def test_commits_grow_rarer_and_a_kill_costs_a_hundredth(tmp_path, monkeypatch):
    """Every batch fills a tile: as many commits as batches would be work that grows as the square of their number."""
    batches = list(batches_of(rows_for(1200, layers=["classifier.0"]), [4]))
    net, whole, root = network(layers=["classifier.0"]), tmp_path / "whole", tmp_path / "root"
    commits, write = [], Manifest.write
    monkeypatch.setattr(Manifest, "write", lambda manifest, folder: [commits.append(folder), write(manifest, folder)])
    capture(whole, batches, net=net)
    assert 200 < len(commits) < 260 < len(batches) == 300
    with pytest.raises(Killed):
        capture(root, batches, net=net, stop_after=299)
    assert 299 - 3 <= capture(root, batches, net=net) < 299
    assert files_of(root) == files_of(whole)


def test_what_a_killed_zarr_left_among_the_samples_is_removed(tmp_path):
    batches = list(varying([3, 5] * 20, [4]))
    whole, root = tmp_path / "whole", tmp_path / "root"
    capture(whole, batches)
    capture_until(root, batches, lambda _: False, stop_after=8)
    chunks = root / "activations" / "target" / "fc6@sample" / "c"
    assert (chunks / "0").is_file()
    (chunks / "1.0123456789abcdef0123456789abcdef.partial").write_text("half")
    capture(root, batches)
    assert files_of(root) == files_of(whole)


def test_a_domain_has_rows_of_one_choice(tmp_path):
    batches = list(batches_of(rows_for(100), [10]))
    with open_writer(tmp_path, "target", network(), "even rows") as writer:
        for batch in batches:
            writer.write(batch)
    before = files_of(tmp_path)
    with pytest.raises(FingerprintMismatchError, match="holds even rows, this capture takes every row: take the same"):
        capture(tmp_path, batches)
    assert files_of(tmp_path) == before
    delete_activations(tmp_path)
    capture(tmp_path, batches)  # the rows start anew
    assert ActivationStore(tmp_path).domain("target").choice == "every row"


def test_batches_whose_rows_are_committed_are_not_asked_for_again(tmp_path):
    batches = list(batches_of(rows_for(100), [10]))
    with pytest.raises(Killed):
        capture(tmp_path, batches, stop_after=7)
    assert capture(tmp_path, batches) == 6  # 64 of 70 rows of fc6 were in full tiles
    assert capture(tmp_path, batches) == 10


@pytest.mark.parametrize("length", [0, 20])
def test_a_last_tile_torn_before_the_last_commit_is_written_anew(tmp_path, length):
    """zarr reads a chunk before it writes part of it; were a short tile such a part, no resume would get past it."""
    batches = list(batches_of(rows_for(50), [10]))
    capture_until(tmp_path, batches, lambda manifest: manifest.domains and manifest.domains["target"].complete)
    last = tmp_path / "activations/target/fc6/c/1/0"
    last.write_bytes(last.read_bytes()[:length])
    capture(tmp_path, batches)
    assert_holds(tmp_path, rows_for(50))


KILL_SCRIPT = """
    import sys
    sys.path.insert(0, {folder!r})
    from stores import *
    with small_tiles(), unsynced():
        rows = rows_for(600, 3)
        def slowly():
            for batch in batches_of(rows, [7], 3):
                print("batch", flush=True)
                yield batch
        capture({root!r}, slowly())
"""


def test_a_capture_killed_for_real_loses_and_doubles_nothing(tmp_path):
    rows = rows_for(600, 3)
    batches = list(batches_of(rows, [7], 3))
    root, whole = tmp_path / "killed", tmp_path / "whole"
    script = textwrap.dedent(KILL_SCRIPT).format(folder=str(Path(__file__).parent), root=str(root))
    committed = [0]
    for lines in (3, 31, 64):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)  # noqa: S603
        with process:
            for _ in range(lines):
                assert process.stdout.readline() == b"batch\n"
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        committed.append(ActivationStore(root).manifest.domains["target"].committed_samples)
    assert 0 < committed[1] < committed[2] < committed[3] < 600
    capture(root, batches)
    capture(whole, batches)
    assert files_of(root) == files_of(whole)
    assert_holds(root, rows)


def test_what_a_manifest_promises_was_synced_before_it_was(tmp_path, monkeypatch):
    """A power cut keeps what was synced: a tile, its folder and the array's metadata come before the promise."""
    synced, promised, write = [], 0, Manifest.write
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))

    def checked(manifest, root):
        nonlocal promised
        for name, record in (manifest.domains["target"].layers if manifest.domains else {}).items():
            array = root / "activations" / "target" / name
            for tile in range(len(record.tile_digests)):
                assert {array / "c" / str(tile) / "0", array / "c" / str(tile), array / "c"} <= set(synced)
                promised += 1
            assert not record.rows or array / "zarr.json" in synced
        write(manifest, root)
        assert synced[-1] == root

    monkeypatch.setattr(Manifest, "write", checked)
    capture(tmp_path, batches_of(rows_for(50), [10]))
    assert promised > 20
