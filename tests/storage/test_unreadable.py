"""What cannot be read, for want of rights or on a failing disk, is never called damaged; what is being replaced is read
as it was or as it will be."""

import builtins
import errno
import io
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from stores import batches_of, capture, rows_for

from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import DalrStreamError, StoreDamagedError, StoreError
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.durable import new_file, new_folder, sync, write_file
from dalr_stream.storage.lock import locked
from dalr_stream.storage.records.moments import load_moments, moments_count, moments_path, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.weights import load_layer_weights, save_layer_weights
from dalr_stream.storage.store import ActivationStore

pytestmark = pytest.mark.usefixtures("quick_stores")
ROWS = np.random.default_rng(0).normal(size=(20, 3))
REFUSED = [errno.EACCES, errno.EIO, errno.ESTALE]


@contextmanager
def unreadable(below, number):
    """Let every look at `below`, or into it, fail: root may do all, so rights alone would not."""

    def guarded(real):
        def call(path, *arguments, **options):
            if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(below):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in [
            (io, "open"),
            (builtins, "open"),
            *((os, name) for name in ("open", "scandir", "listdir")),
        ]:
            patch.setattr(module, name, guarded(getattr(module, name)))
        yield


@pytest.fixture
def store(full):
    save_moments(moments_path(full, "target", "fc6", "training"), Moments.of(ROWS), {"rows": "these"})
    save_layer_weights(full, "fc6", np.ones((5, 3)), None, {})
    return full


READS = {
    "manifest.json": ActivationStore,
    "activations/target/fc6": lambda root: ActivationStore(root).read_tile("target", "fc6", 0),
    "activations/target/fc6/c/0": lambda root: ActivationStore(root).read_tile("target", "fc6", 0),
    "moments/target/fc6/training": lambda root: load_moments(root / "moments/target/fc6/training"),
    "moments/target/fc6/training/zarr.json": lambda root: provenance_of(root / "moments/target/fc6/training"),
    "moments/target/fc6/training/scatter": lambda root: load_moments(root / "moments/target/fc6/training"),
    "moments/target/fc6/training/mean/c": lambda root: load_moments(root / "moments/target/fc6/training"),
    "weights/fc6/weight": lambda root: load_layer_weights(root, "fc6"),
}


@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", READS)
def test_what_cannot_be_read_is_not_called_damaged(store, name, number):
    with unreadable(store / name, number):
        with pytest.raises(StoreError, match=r"cannot be read .*check the disk and your permissions") as caught:
            READS[name](store)
        problems = "; ".join(map(str, verify_store(store).findings))
    assert type(caught.value) is StoreError
    assert os.strerror(number) in str(caught.value)
    assert "delete" not in str(caught.value)
    assert "cannot be read" in problems
    READS[name](store)


@pytest.mark.parametrize("name", ["moments", "moments/target", "moments/target/fc6", "weights", "activations/target"])
def test_a_folder_that_cannot_be_listed_is_a_finding_and_refuses_writers(store, name):
    with unreadable(store / name, errno.EACCES):
        assert any("cannot be read" in str(finding) for finding in verify_store(store).findings)
        with pytest.raises(StoreError, match="cannot be read"), locked(store):
            pass
    with unreadable(store, errno.EACCES), pytest.raises(DalrStreamError, match="cannot be read"):
        merge([store], store.parent / "out")


def test_what_is_gone_is_damaged_as_before(store):
    (store / "weights/fc6/weight/zarr.json").unlink()
    with pytest.raises(StoreDamagedError, match="array 'weight' is damaged"):
        load_layer_weights(store, "fc6")


def test_a_reader_of_a_record_that_is_replaced_sees_the_old_one_or_the_new_one(tmp_path):
    path = moments_path(tmp_path, "target", "fc6", "training")
    records = [Moments.of(np.random.default_rng(seed).normal(size=(20 + seed, 40))) for seed in (0, 1)]
    save_moments(path, records[0], {"seed": 0})
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for seed in (1, 0):
                save_moments(path, records[seed], {"seed": seed})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            found = load_moments(path)
            assert any(found.same_bits(record) for record in records)
            assert provenance_of(path) in ({"seed": 0}, {"seed": 1})
            assert moments_count(path) in (20, 21)
    finally:
        stop.set()
        writer.join()


def test_a_record_whose_replacement_was_killed_is_not_waited_for_long(tmp_path):
    path = moments_path(tmp_path, "target", "fc6", "training")
    save_moments(path, Moments.of(ROWS), {})
    path.rename(path.with_name(".tmp-old-training-0123abcd"))
    assert provenance_of(path) is None


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch, number):
    def refuse_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112  # a descriptor has no Path
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse_folders)
    capture(tmp_path / "root", batches_of(rows_for(100), [10]))
    assert ActivationStore(tmp_path / "root").domain("target").complete


def test_a_file_that_cannot_be_synced_is_an_error(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "a")


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_has_the_rights_that_the_umask_leaves(tmp_path, umask):
    def private(path):
        """As safetensors writes: a temporary file of its own, for its owner alone."""
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    write_file(tmp_path / "plain", b"a")
    with new_file(tmp_path / "file") as temporary:
        private(temporary)
    with new_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        private(temporary / "inner" / "file")
        (temporary / "other").write_text("a")
    capture(tmp_path / "root", batches_of(rows_for(100), [10]))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "writer.lock"]
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o777 & ~umask}
