"""One writer per store: whoever holds the lock may write, and clears what a killed writer left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dalr_stream.errors import StoreLockedError
from dalr_stream.storage.buckets.claim import claimed
from dalr_stream.storage.layout import LOCK, require_no_links, require_store_or_empty, sweep
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
def _folder_locked(root: Path) -> Iterator[None]:
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
        with explained(root):
            require_no_links(root)
            sweep(root)
        yield
    finally:
        lock.release()
