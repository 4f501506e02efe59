"""Writing so that a kill, or a power cut, leaves the old state or the new one and nothing in between.

A file is written beside its final place, synced, renamed over it, and the rename itself is synced through the folder.
A folder of files is written whole under a temporary name and renamed likewise. Names that begin with `TEMPORARY`, and
zarr's own that end in `ZARR_TEMPORARY`, are litter of a writer that was killed; only a writer that holds the store's
lock may sweep them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"
ZARR_TEMPORARY = ".partial"
OUTGOING = f"{TEMPORARY}old-"
"""A record on its way out, until the new one has taken its place."""


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader, and a machine that loses power, see the old bytes or the new ones."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on leaving without an error it becomes `path`, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for file in (temporary, *temporary.rglob("*")):
        sync(file)
    if path.exists():
        outgoing = path.with_name(f"{OUTGOING}{path.name}-{os.getpid()}")
        path.rename(outgoing)
        temporary.rename(path)
        shutil.rmtree(outgoing)
    else:
        temporary.rename(path)
    sync(path.parent)


def sweep(folder: Path) -> None:
    """Put back or remove what killed writers left below `folder`; call it with the store's lock held."""
    for outgoing in sorted(folder.rglob(f"{OUTGOING}*")):
        name = outgoing.name.removeprefix(OUTGOING).rpartition("-")[0]
        if not outgoing.with_name(name).exists():  # killed between the two renames: the old record is all there is
            outgoing.rename(outgoing.with_name(name))
    for litter in sorted([*folder.rglob(f"{TEMPORARY}*"), *folder.rglob(f"*.*{ZARR_TEMPORARY}")]):
        if litter.is_dir():
            shutil.rmtree(litter, ignore_errors=True)
        else:
            litter.unlink(missing_ok=True)
