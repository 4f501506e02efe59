"""Tiles of one array in a bucket: one put each, its length said with the commit, never listed.

A tile has the name and the bytes that zarr would give it. It is put on condition that there is none; one that a killed
writer left behind the committed ones is replaced.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from dalr_stream.storage.buckets.claim import claim_to
from dalr_stream.storage.chunks import chunk_name, packed
from dalr_stream.storage.metadata import read_metadata, set_rows
from dalr_stream.storage.places.path import BucketPath


class BucketTiles:
    """The tiles of one array, from the committed ones on."""

    def __init__(self, root: BucketPath, path: BucketPath, height: int) -> None:
        self._claim = claim_to(root)
        self._path = path
        self._height = height
        self._rows: int | None = None

    def keep(self, tiles: int, rows: int) -> None:  # noqa: ARG002  # objects behind them are replaced as they are reached
        """Begin behind the committed rows."""
        if read_metadata(self._path)["shape"][0] != rows:
            set_rows(self._path, rows)

    def write(self, number: int, first: int, values: NDArray[Any]) -> None:
        """Put one tile, whose first row is number `first`; a shorter one is filled up as zarr fills it."""
        self._claim.put_tile((self._path / chunk_name(number, values.ndim)).key, packed(values, self._height))
        self._rows = first + values.shape[0]

    def sync(self) -> None:
        """Wait for the tiles, and say how many rows there are."""
        self._claim.settle()
        if self._rows is not None:
            set_rows(self._path, self._rows)
            self._rows = None
