"""Which names in a store's folder are its own: nothing else is ever removed there, and no link is ever followed.

A writer makes records under temporary names beside their final ones, in the folders listed here. A name counts as
litter of a killed writer only if it is one that `durable` or zarr makes, in a folder where they make it. A folder that
holds other things and no manifest is no store and is refused untouched; so is a store in which a link stands where a
folder or file of its own should be: through it, writing and removing would reach files outside.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dalr_stream.errors import StoreError
from dalr_stream.storage.durable import OUTGOING, TEMPORARY, readable, sync
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, children

MANIFEST = "manifest.json"
LOCK = "writer.lock"
GROUP = "zarr.json"
UNFINISHED = "unfinished"
"""Checkpoints of accumulations."""
KINDS = {"activations": 2, "weights": 0, "moments": 2, "shards": 3, "sums": 3, "solutions": 1, UNFINISHED: 2}
"""The folders at the root, and how many levels below each of them writers make temporary names. The chunks of
activations lie deeper: whoever writes an array clears it, so a sweep never lists them."""
_AT_ROOT = {MANIFEST, LOCK, GROUP, *KINDS}
_STRANGE_BUT_EMPTY = {".DS_Store", "lost+found"}
"""What a file manager or a new file system puts into an empty folder."""
_LITTER = re.compile(rf"{re.escape(TEMPORARY)}(?:new|old)-(?P<name>.+)-[0-9a-f]{{8}}")
_ZARR_LITTER = re.compile(r".+\.[0-9a-f]{32}\.partial")


def is_zarr_litter(name: str) -> bool:
    """Tell whether zarr calls its temporary files so."""
    return _ZARR_LITTER.fullmatch(name) is not None


def is_empty(root: Place) -> bool:
    """Tell whether a folder holds nothing, or only what the making of a store, killed at once, leaves."""
    harmless = {LOCK, GROUP} | _STRANGE_BUT_EMPTY
    return all(entry.name in harmless or _is_litter_at_root(entry.name) for entry in children(root))


def require_store_or_empty(root: Place) -> None:
    """Raise StoreError where `root` is a folder of other things."""
    if root.is_dir() and not (root / MANIFEST).exists() and not is_empty(root):
        raise StoreError(
            f"'{root}' is not a store: it is not empty and has no {MANIFEST}; name a new folder, or that "
            "of a store. Where it was one, delete it and begin again"
        )
    if isinstance(root, Path) and (root / LOCK).is_symlink():
        raise link_error(root / LOCK)


def require_no_links(root: Path) -> None:
    """Raise StoreError where a link stands in place of a folder or file of the store."""
    link = next(links(root), None)
    if link is not None:
        raise link_error(link)


def links(root: Place) -> Iterator[Path]:
    """Yield every link that stands where a store's own folders, records and arrays do; a bucket has none."""
    for folder in () if isinstance(root, BucketPath) else _folders(root):
        for entry in _entries(folder):
            if entry.is_symlink() and (folder != root or entry.name in _AT_ROOT or _is_litter_at_root(entry.name)):
                yield folder / entry.name


def sweep(root: Path) -> None:
    """Put back or remove what killed writers left in a store; call it with the store's lock held.

    Lists the folders of domains, layers and records, and never their chunks.
    """
    for folder in _folders(root):
        sweep_folder(folder, at_root=folder == root)
        sync(folder)  # names that the killed writer made and had no time to sync
    remove_empty(root)


def sweep_folder(folder: Path, *, at_root: bool = False) -> None:
    """Put back or remove what killed writers left in one folder, which only they write in; not what lies deeper."""
    for name in [entry.name for entry in _entries(folder)]:
        litter = _LITTER.fullmatch(name)
        if litter is not None and (not at_root or _is_litter_at_root(name)):
            _clear(folder / name, folder / litter["name"])
        elif is_zarr_litter(name) and not at_root and (folder / name).is_file():
            (folder / name).unlink(missing_ok=True)


def remove_empty(root: Place) -> None:
    """Remove the folders in which there are no checkpoints any more; a bucket has no folders."""
    for folder in () if isinstance(root, BucketPath) else reversed(list(_below(root / UNFINISHED, 1))):
        with suppress(OSError):  # there are some
            folder.rmdir()


def _clear(litter: Path, name: Path) -> None:
    """Remove a temporary record; one that is all there is of `name`, killed between two renames, is put back."""
    if litter.name.startswith(OUTGOING) and not name.exists():
        litter.rename(name)
    elif litter.is_dir():
        shutil.rmtree(litter, ignore_errors=True)
    else:
        litter.unlink(missing_ok=True)


def _is_litter_at_root(name: str) -> bool:
    litter = _LITTER.fullmatch(name)
    return litter is not None and litter["name"] in _AT_ROOT


def link_error(link: Path) -> StoreError:
    """Return the error that refuses a link."""
    return StoreError(
        f"'{link}' is a link, and a store holds none: writing and removing through it would reach files elsewhere; put "
        "what it leads to in its place"
    )


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders in which writers make temporary names: never through a link, nor those names themselves."""
    yield root
    for kind, depth in KINDS.items():
        yield from _below(root / kind, depth)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return
    yield folder
    if depth:
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False) and not _LITTER.fullmatch(entry.name):
                yield from _below(folder / entry.name, depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with readable(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
