"""Tiles of one array on their way to disk: a chunk each, synced before the manifest names them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import zarr
from numpy.typing import NDArray

from dalr_stream.storage.buckets.tiles import BucketTiles
from dalr_stream.storage.durable import sync
from dalr_stream.storage.layout import is_zarr_litter, link_error
from dalr_stream.storage.metadata import set_rows
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place


class Tiles(Protocol):
    """The tiles of one array, from the committed ones on."""

    def keep(self, tiles: int, rows: int) -> None:
        """Begin behind the committed rows; what a killed writer left there does not count."""

    def write(self, number: int, first: int, values: NDArray[Any]) -> None:
        """Write one tile, whose first row is number `first`."""

    def sync(self) -> None:
        """Make the tiles written since the last call, and the number of rows, outlive a power cut."""


def tiles_of(root: Place, path: Place, height: int) -> Tiles:
    """Return the tiles of the array at `path` in the store at `root`, of so many rows each."""
    if isinstance(root, BucketPath) and isinstance(path, BucketPath):
        return BucketTiles(root, path, height)
    return _FolderTiles(Path(str(path)))


class _FolderTiles:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._unsynced: list[int] = []

    def keep(self, tiles: int, rows: int) -> None:
        for chunk in (self._path / "c").iterdir():
            if chunk.is_symlink():
                raise link_error(chunk)
            number = int(chunk.name) if chunk.name.isdecimal() else -1
            # zarr's own temporary files too: those of samples lie here, and not in a folder each
            if number >= tiles or is_zarr_litter(chunk.name):
                shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
        set_rows(self._path, rows)

    def write(self, number: int, first: int, values: NDArray[Any]) -> None:
        rows = first + values.shape[0]
        set_rows(self._path, rows)  # not zarr's resize, which would leave all tiles to a file that was never synced
        zarr.open_array(self._path, mode="r+")[first:rows] = values
        self._unsynced.append(number)

    def sync(self) -> None:
        if not self._unsynced:
            return
        for number in self._unsynced:
            chunk = self._path / "c" / str(number)
            if chunk.is_dir():
                sync(chunk / "0")
            sync(chunk)
        for part in (self._path / "c", self._path / "zarr.json", self._path, self._path.parent):
            sync(part)
        self._unsynced = []
