"""One writer per store: whoever holds the lock may write, and clears what a killed writer left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dalr_stream.errors import StoreLockedError
from dalr_stream.storage.durable import explained, make_folder
from dalr_stream.storage.layout import LOCK, require_no_links, require_store_or_empty, sweep


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the store as its one writer, having cleared what a killed one left.

    Raises StoreLockedError where another process holds it, and StoreError, with nothing changed, where `root` is a
    folder of other things or a store with links inside; see `layout`.
    """
    lock = filelock.FileLock(root / LOCK, timeout=0)
    with explained(root):
        require_store_or_empty(root)  # before the lock's own file is made there
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
