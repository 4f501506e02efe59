"""One writer a store: whoever holds the lock may write, and puts in order what a killed writer left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dalr_stream.errors import StoreLockedError
from dalr_stream.storage.durable import explained, make_folder, sweep

LOCK = "writer.lock"


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the store as its one writer; raises StoreLockedError where another process does."""
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
            sweep(root)
        yield
    finally:
        lock.release()
