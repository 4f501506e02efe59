"""One writer per store: whoever holds the lock may write, and clears what a killed writer left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dalr_stream.errors import StoreLockedError
from dalr_stream.storage.buckets.claim import claimed
from dalr_stream.storage.buckets.sweep import sweep_records
from dalr_stream.storage.layout import LOCK, require_no_links, require_store_or_empty, sweep, sweep_folder
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, explained, make_folder


@contextmanager
def locked(root: Place) -> Iterator[None]:
    """Hold the store as its one writer, having cleared what a killed one left.

    Raises StoreLockedError where another process holds it, and StoreError, with nothing changed, where `root` is a
    folder of other things or a store with links inside; see `layout`, and for buckets `claim`.
    """
    with explained(root):
        require_store_or_empty(root)  # before the lock's own file is made there
    with claimed(root) if isinstance(root, BucketPath) else _folder_locked(root):
        yield


@contextmanager
def work_folder(root: Place, *within: str) -> Iterator[None]:
    """Hold a folder that is no store and has no other things in it, having cleared what a killed holder left.

    That is looked for in the folder itself and in those that match the patterns `within`; in a bucket, in records two
    names below `root` and in those of a store. Raises StoreLockedError.
    """
    if isinstance(root, BucketPath):
        with claimed(root):
            sweep_records(root, 2)
            yield
        return
    with _held(root):
        with explained(root):
            for folder in (root, *(path for pattern in within for path in root.glob(pattern))):
                if folder.is_dir() and not folder.is_symlink():
                    sweep_folder(folder)
        yield


@contextmanager
def _folder_locked(root: Path) -> Iterator[None]:
    with _held(root):
        with explained(root):
            require_no_links(root)
            sweep(root)
        yield


@contextmanager
def _held(root: Path) -> Iterator[None]:
    lock = filelock.FileLock(root / LOCK, timeout=0)
    make_folder(root)
    with explained(root):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise StoreLockedError(
                f"'{root}' is being written by another process: wait for it, or write to another store"
            ) from None
    try:
        yield
    finally:
        lock.release()
