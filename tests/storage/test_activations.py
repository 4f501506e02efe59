"""Rows to disk and back: nothing lost, nothing doubled, nothing taken for something else."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    WIDTHS,
    Killed,
    batches_of,
    capture,
    files_of,
    flipped,
    network,
    read_back,
    rows_for,
    small_tiles,
    unsynced,
)

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreDamagedError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
)
from dalr_stream.numerics.tiling import RowBatch
from dalr_stream.storage.activations import ActivationStore, forget_domain, open_writer
from dalr_stream.storage.archive import delete_activations, save_weights
from dalr_stream.storage.manifest import Manifest


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
    with small_tiles(), unsynced():
        yield


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A new folder at each call: hypothesis asks for many in one test."""
    return lambda: tmp_path_factory.mktemp("store")


def assert_holds(root, rows, domain="target"):
    for name, block in rows.items():
        found = read_back(root, name, domain)
        assert found.dtype == block.dtype
        assert np.array_equal(found, block)


# --- writing and reading ------------------------------------------------------------------------------------------


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any)


@settings(max_examples=8)
@given(sizes, st.integers(1, 120), st.sampled_from([1, 3]), st.sampled_from([np.float32, np.float64]))
def test_what_was_written_is_read_back_and_the_batches_leave_no_trace(scratch, sizes, samples, per_sample, dtype):
    rows = rows_for(samples, per_sample, dtype=dtype)
    one, whole = scratch(), scratch()
    capture(one, batches_of(rows, sizes, per_sample))
    capture(whole, batches_of(rows, [samples], per_sample))
    assert_holds(one, rows)
    files, twin = files_of(one), files_of(whole)
    del files["manifest.json"], twin["manifest.json"]  # which knows the batches
    assert files == twin
    record, other = ActivationStore(one).domain("target"), ActivationStore(whole).domain("target")
    assert record.layers == other.layers
    assert record.complete
    assert record.samples == record.committed_samples == samples


def test_a_tile_of_full_size_is_one_chunk(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dalr_stream.numerics.tiling.MIN_TILE_ROWS", 256)
        patch.setattr("dalr_stream.numerics.tiling.MAX_TILE_ROWS", 4096)
        patch.setattr("dalr_stream.numerics.tiling.MAX_TILE_BYTES", 32 * 2**20)
        rows = rows_for(9000, layers=["fc6"])
        capture(tmp_path, batches_of(rows, [700]), net=network(layers=["fc6"]))
        assert_holds(tmp_path, rows)
        array = zarr.open_array(tmp_path / "activations" / "target" / "fc6", mode="r")
    assert array.chunks == (4096, 3)
    assert sorted(path.name for path in (tmp_path / "activations/target/fc6/c").iterdir()) == ["0", "1", "2"]
    assert np.array_equal(array[...], rows["fc6"])


def test_xarray_opens_a_domain_by_names(tmp_path):
    rows = rows_for(50)
    capture(tmp_path, batches_of(rows, [16]))
    with xarray.open_zarr(tmp_path / "activations" / "target", consolidated=False) as data:
        assert set(data) == set(WIDTHS)
        assert data["fc6"].dims == ("fc6.row", "fc6.feature")
        assert np.array_equal(data["classifier.0"].values, rows["classifier.0"])


def test_no_file_of_a_store_needs_pickle(tmp_path):
    capture(tmp_path, batches_of(rows_for(50), [16]))
    kinds = {array.dtype.kind for _, array in zarr.open_group(tmp_path / "activations/target", mode="r").arrays()}
    assert kinds == {"f"}
    assert not any(b"pickle" in data for data in files_of(tmp_path).values())


def test_two_domains_live_side_by_side(tmp_path):
    target, source = rows_for(40), rows_for(60, seed=1)
    capture(tmp_path, batches_of(target, [7]))
    capture(tmp_path, batches_of(source, [9]), domain="source")
    assert_holds(tmp_path, target)
    assert_holds(tmp_path, source, "source")


def test_a_second_domain_may_watch_other_layers(tmp_path):
    capture(tmp_path, batches_of(rows_for(40, layers=["fc6"]), [7]), net=network(layers=["fc6"]))
    capture(tmp_path, batches_of(rows_for(40), [7]), domain="source")
    assert set(Manifest.read(tmp_path).network.layers) == set(WIDTHS)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-"])
def test_a_domain_that_is_no_plain_name_is_refused(tmp_path, name):
    with pytest.raises(InvalidInputError, match="domain: a name is letters"), open_writer(tmp_path, name, network()):
        pass


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    with pytest.raises(StoreNotFoundError, match="is not a dalr_stream store"):
        ActivationStore(tmp_path)
    capture(tmp_path, batches_of(rows_for(10), [7]))
    store = ActivationStore(tmp_path)
    with pytest.raises(StoreNotFoundError, match="no domain 'birds': it has target"):
        store.domain("birds")
    with pytest.raises(StoreNotFoundError, match=r"no layer 'fc7' on 'target': it has fc6, classifier.0"):
        store.rows("target", "fc7")


def test_a_file_in_the_way_of_a_store_is_an_error_of_the_store(tmp_path):
    (tmp_path / "birds.zarr").write_text("no")
    with pytest.raises(StoreError, match="a file is in its way"):
        capture(tmp_path / "birds.zarr", [])


# --- stopped and resumed ------------------------------------------------------------------------------------------


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


# --- resumed with something else ----------------------------------------------------------------------------------


@pytest.fixture
def half(tmp_path):
    """A store that was stopped after 7 of 10 batches of 10."""
    with pytest.raises(Killed):
        capture(tmp_path, batches_of(rows_for(100), [10]), stop_after=7)
    return tmp_path


@pytest.fixture
def full(tmp_path):
    capture(tmp_path, batches_of(rows_for(100), [10]))
    return tmp_path


def test_another_batch_size_on_resume_is_named_with_its_batch(half):
    before = files_of(half)
    with pytest.raises(FingerprintMismatchError, match="'target', batch 0 had 10 samples and now has 20: resume with"):
        capture(half, batches_of(rows_for(100), [20]))
    with pytest.raises(FingerprintMismatchError, match="batch 2 had 10 samples and now has 5"):
        capture(half, batches_of(rows_for(100), [10, 10, 5]))
    assert files_of(half) == before


@pytest.mark.parametrize("first", [0, 5, 6])
def test_another_order_on_resume_is_named_with_its_batch(half, first):
    """Batch 6 straddles the commit: it is run again, and still compared."""
    batches = list(batches_of(rows_for(100), [10]))
    batches[first], batches[9] = batches[9], batches[first]
    before = files_of(half)
    with pytest.raises(FingerprintMismatchError, match=f"batch {first} is not the batch captured before .*their order"):
        capture(half, batches)
    assert files_of(half) == before


def test_a_loader_that_ends_early_on_resume_is_refused(half):
    with pytest.raises(FingerprintMismatchError, match="had 7 batches before and ended after 6 now"):
        capture(half, list(batches_of(rows_for(100), [10]))[:6])


def test_other_layers_on_resume_are_named(half):
    rows = rows_for(100)
    other = [RowBatch(b.samples, b.digest, {"fc6": b.rows["fc6"]}) for b in batches_of(rows, [10])]
    with pytest.raises(
        FingerprintMismatchError, match=r"holds layers classifier.0, fc6, .* watches fc6: watch the same"
    ):
        capture(half, other, net=network(layers=["fc6"]))


def test_other_layers_over_a_complete_domain_are_named_too(full):
    rows = rows_for(100)
    before = files_of(full)
    with pytest.raises(FingerprintMismatchError, match=r"holds layers classifier.0, fc6, .* watches fc6"):
        capture(full, batches_of(rows, [10]), net=network(layers=["fc6"]))
    assert files_of(full) == before


def rewritten(batches, change):
    return [RowBatch(b.samples, b.digest, {n: change(r) for n, r in b.rows.items()}) for b in batches]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.astype(np.float64), "3 features of float32, now 3 of float64"),
        (lambda rows: rows[:, 1:], "3 features of float32, now 2 of float32"),
        (lambda rows: np.repeat(rows, 2, axis=0), "layer 'fc6': .* gave 20 and earlier ones 1 each"),
    ],
)
def test_rows_of_another_kind_on_resume_are_refused(half, change, message):
    before = files_of(half)
    with pytest.raises((FingerprintMismatchError, InvalidInputError), match=message):
        capture(half, rewritten(batches_of(rows_for(100), [10]), change))
    assert files_of(half) == before


def test_another_network_is_refused_and_both_are_named(full):
    before = files_of(full)
    with pytest.raises(FingerprintMismatchError, match="fingerprint aaaaaaaaaaaa, this one has bbbbbbbbbbbb"):
        capture(full, batches_of(rows_for(100), [10]), net=network("b" * 64))
    assert files_of(full) == before


def test_a_first_capture_that_failed_lends_its_weights_to_no_other_network(tmp_path):
    """The weights are written before the first rows; without a manifest another network would find and keep them."""
    with suppress(Killed), open_writer(tmp_path, "target", network()):
        save_weights(tmp_path, "fc6", np.zeros((5, 3)), None, {})
        raise Killed
    with pytest.raises(FingerprintMismatchError, match="aaaaaaaaaaaa"):
        capture(tmp_path, batches_of(rows_for(10), [10]), net=network("b" * 64))


def test_a_complete_domain_takes_the_same_data_again_and_changes_no_byte(full):
    before = files_of(full)
    assert capture(full, batches_of(rows_for(100), [10])) == 10
    assert files_of(full) == before


def test_a_complete_domain_takes_neither_more_nor_fewer_batches(full):
    before = files_of(full)
    with pytest.raises(FingerprintMismatchError, match="is complete with 10 batches, and more came"):
        capture(full, [*batches_of(rows_for(100), [10]), *batches_of(rows_for(5), [5])])
    with pytest.raises(FingerprintMismatchError, match="had 10 batches before and ended after 9 now"):
        capture(full, list(batches_of(rows_for(100), [10]))[:9])
    assert files_of(full) == before


# --- beside each other --------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_also_from_another_process(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from stores import *
        from dalr_stream.errors import StoreLockedError
        try:
            capture({str(tmp_path)!r}, [], domain="source")
        except StoreLockedError as error:
            print(error)
    """)
    with open_writer(tmp_path, "target", network()):
        litter = tmp_path / ".tmp-of-the-writer"
        litter.write_text("mine")
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
        assert "is being written by another process: wait for it" in run.stdout
        with pytest.raises(StoreLockedError), open_writer(tmp_path, "source", network()):
            pass
        assert litter.exists()
    capture(tmp_path, batches_of(rows_for(10), [10]))


def test_a_reader_beside_a_writer_sees_committed_rows_only_and_changes_nothing(tmp_path):
    rows = rows_for(100)
    with open_writer(tmp_path, "target", network()) as writer:
        seen = []
        for number, batch in enumerate(batches_of(rows, [9])):
            assert not writer.skip(number, batch.samples, batch.digest)
            writer.write(batch)
            before = files_of(tmp_path)
            store = ActivationStore(tmp_path)
            if "target" in store.manifest.domains:
                assert not store.domain("target").complete
                found = read_back(tmp_path, "classifier.0")
                assert np.array_equal(found, rows["classifier.0"][: len(found)])
                seen.append(len(found))
            assert files_of(tmp_path) == before
        writer.finish()
    assert seen == [4 * (9 * k // 4) for k in range(1, 12)] + [100]


def test_a_reader_opened_before_a_commit_goes_on_reading_what_it_knew(tmp_path):
    rows = rows_for(100)
    batches = list(batches_of(rows, [10]))
    with pytest.raises(Killed):
        capture(tmp_path, batches, stop_after=5)
    early = ActivationStore(tmp_path)
    capture(tmp_path, batches)
    tiles = [
        early.read_tile("target", "classifier.0", tile).rows for tile in range(early.tiles("target", "classifier.0"))
    ]
    assert np.array_equal(np.concatenate(tiles), rows["classifier.0"][:48])


def test_litter_is_swept_by_a_writer_and_left_by_a_reader(half):
    litter = [half / ".tmp-manifest.json-1", half / "activations/target/fc6/c/2/0.0123abcd.partial"]
    for path in litter:  # a chunk's is behind the last committed tile: its writer was killed before the commit
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    (half / "moments/target/fc6/.tmp-training-1").mkdir(parents=True)
    ActivationStore(half).read_tile("target", "fc6", 0)
    assert all(path.exists() for path in litter)
    capture(half, batches_of(rows_for(100), [10]))
    assert not any(path.exists() for path in litter)
    assert not (half / "moments/target/fc6/.tmp-training-1").exists()


# --- damage -------------------------------------------------------------------------------------------------------


def chunk(root, layer="fc6", tile=1):
    return root / "activations" / "target" / layer / "c" / str(tile) / "0"


def test_a_flipped_bit_anywhere_in_a_tile_is_found_and_the_tile_named(full):
    whole = chunk(full).read_bytes()
    store = ActivationStore(full)
    for position in range(0, len(whole), 3):
        flipped(chunk(full), position, bit=position % 8)
        with pytest.raises(StoreDamagedError, match="tile 1 of layer 'fc6' on 'target' is damaged"):
            store.read_tile("target", "fc6", 1)
        chunk(full).write_bytes(whole)
    assert store.read_tile("target", "fc6", 1).rows.shape == (32, 3)


def test_bytes_put_in_place_of_a_tile_are_found_though_they_decode(full):
    """Another tile's chunk is a whole zstd frame with a valid checksum."""
    chunk(full).write_bytes(chunk(full, tile=0).read_bytes())
    with pytest.raises(StoreDamagedError, match=r"tile 1 of layer 'fc6' .* digest does not match"):
        read_back(full, "fc6")


def test_a_lost_chunk_is_loud(full):
    chunk(full).unlink()
    with pytest.raises(StoreDamagedError, match="tile 1 of layer 'fc6'"):
        read_back(full, "fc6")


@pytest.mark.filterwarnings("default")  # zarr warns of some spoilt metadata before it fails
def test_a_flipped_bit_in_an_arrays_metadata_is_found_or_harmless(full):
    path = full / "activations/target/fc6/zarr.json"
    whole, expected = path.read_bytes(), read_back(full, "fc6")
    found = 0
    for position in range(0, len(whole), 2):
        flipped(path, position, bit=position // 2 % 7)
        try:
            assert np.array_equal(read_back(full, "fc6"), expected)
        except StoreDamagedError as error:
            assert "of layer 'fc6' on 'target' is damaged" in str(error)  # noqa: PT017
            found += 1
        path.write_bytes(whole)
    assert found > len(whole) // 10


def test_rows_deleted_by_hand_are_gone_not_damaged(full):
    delete_activations(full)
    with pytest.raises(StoreNotFoundError, match="activations were deleted; capture again"):
        read_back(full, "fc6")


# --- deleted and forgotten ----------------------------------------------------------------------------------------


def test_deleted_activations_can_be_captured_again(full):
    before = files_of(full)
    delete_activations(full)
    assert "target" in Manifest.read(full).domains
    assert capture(full, batches_of(rows_for(100), [10])) == 0
    assert files_of(full) == before


def test_a_recapture_that_was_stopped_at_once_does_not_pass_for_the_old_complete_one(full):
    delete_activations(full)
    batches = list(batches_of(rows_for(100), [2]))
    with pytest.raises(Killed):
        capture(full, batches, stop_after=1)
    assert capture(full, batches) == 0
    assert_holds(full, rows_for(100))


def test_a_forgotten_domain_leaves_the_others(full):
    capture(full, batches_of(rows_for(20, seed=1), [10]), domain="source")
    forget_domain(full, "target")
    assert set(Manifest.read(full).domains) == {"source"}
    assert not (full / "activations/target").exists()
    assert_holds(full, rows_for(20, seed=1), "source")
    other = rows_for(30, seed=2)
    capture(full, batches_of(other, [4]))
    assert_holds(full, other)


def test_forgetting_where_there_is_no_store_makes_none(tmp_path):
    forget_domain(tmp_path / "nothing", "target")
    assert list(tmp_path.iterdir()) == []
