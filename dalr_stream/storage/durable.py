"""Writing so that a kill, or a power cut, leaves the old state or the new one and nothing in between.

A file is written beside its final place, synced, renamed over it, and the rename itself is synced through the folder.
A folder of files is written whole under a temporary name and renamed likewise; one that goes is renamed away before its
files are removed. The temporary names of a writer that was killed are litter; `layout` says who sweeps it where.

What the operating system refuses becomes a `DiskSpaceError` or a `StoreError` that names the path and the remedy.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalr_stream.errors import DiskSpaceError, StoreError

TEMPORARY = ".tmp-"
INCOMING = f"{TEMPORARY}new-"
OUTGOING = f"{TEMPORARY}old-"
"""A record on its way out, until the new one has taken its place."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)
_WAITS, _WAIT_SECONDS = 25, 0.01
"""How often, and how long, a reader waits for a record that is being replaced: two renames apart."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into an error that names `path` and the remedy: DiskSpaceError, or StoreError for the others."""
    try:
        yield
    except OSError as error:
        again = "and run the same command again: it resumes where it stopped"
        if error.errno in _FULL:
            raise DiskSpaceError(f"'{path}': the disk is full ({error.strerror}): free some {again}") from error
        raise StoreError(
            f"'{path}' cannot be written ({error}): check the disk and your permissions {again}"
        ) from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError that says nothing of the bytes (no rights, a failing disk) into a StoreError that names `path`.

    What is not there, or is a folder in place of a file, stays an OSError: that is damage, or a record never made.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in _NOT_THERE:
            raise
        raise StoreError(
            f"'{path}' cannot be read ({error.strerror}): it may be intact; check the disk and your permissions"
        ) from error


def folder_there(path: Path) -> bool:
    """Tell whether a folder is there; one whose name is between two renames, as it is replaced, is waited for.

    Raises StoreError where nobody can tell.
    """
    with readable(path):
        for _ in range(_WAITS):
            if path.is_dir():
                return True
            if not any(path.parent.glob(f"{OUTGOING}{glob.escape(path.name)}-*")):
                break
            time.sleep(_WAIT_SECONDS)
        return path.is_dir()


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk; some file systems cannot sync folders, and need not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and their names outlive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with explained(path):
        try:
            path.mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"'{path}' cannot be made: a file is in its way") from None
        sync(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader, and a machine that loses power, see the old bytes or the new ones."""
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; on leaving without an error it becomes `path`, replacing what was there.

    Whatever rights the writer gives it, it ends with those that the process's umask leaves.
    """
    with _replacing(path) as temporary:
        temporary.write_bytes(b"")
        rights = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(rights)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = _beside(path, INCOMING)
    with explained(path):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # on a full disk every byte counts
            raise
        sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on leaving without an error it becomes `path`, replacing what was there.

    Its files end with the rights that the process's umask leaves.
    """
    temporary = _beside(path, INCOMING)
    with explained(path):
        make_folder(path.parent)
        temporary.mkdir()
        try:
            yield temporary
            place_folder(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def place_folder(temporary: Path, path: Path) -> None:
    """Let a folder that is filled become `path`, replacing what was there; it is on the disk before that."""
    with explained(path):
        rights = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        for file in (temporary, *temporary.rglob("*")):
            if file.is_file() and stat.S_IMODE(file.stat().st_mode) != rights:
                file.chmod(rights)
            sync(file)
        _put_in_place(temporary, path)


def _put_in_place(temporary: Path, path: Path) -> None:
    outgoing = _beside(path, OUTGOING)
    try:
        if path.exists():
            path.rename(outgoing)
        temporary.rename(path)
    except BaseException:  # Ctrl-C as well: outside a store no sweep puts it back
        if outgoing.exists() and not path.exists():
            outgoing.rename(path)
        raise
    sync(path.parent)  # before the old record goes: else a power cut could bring back its name without its files
    shutil.rmtree(outgoing, ignore_errors=True)  # what stays is litter, for the next sweep


def remove_folder(path: Path) -> None:
    """Remove a folder that may be absent: at every instant it is there whole, or gone."""
    if not path.exists():
        return
    outgoing = _beside(path, INCOMING)  # not OUTGOING: a sweep must not put it back
    with explained(path):
        path.rename(outgoing)
        sync(path.parent)
        shutil.rmtree(outgoing, ignore_errors=True)


def _beside(path: Path, mark: str) -> Path:
    """Return a name that no other writer has, nor one that was killed: process numbers come again."""
    return path.with_name(f"{mark}{path.name}-{secrets.token_hex(4)}")
