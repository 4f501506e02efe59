"""An array in a bucket, read and written by rows: each chunk is one request, tried again as every request is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.storage.chunks import chunk_name, fill_value, packed, unpack_into
from dalr_stream.storage.places.path import BucketPath


class BucketArray:
    """The part of a zarr array's interface that stores use; chunks span full rows."""

    def __init__(self, path: BucketPath, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._dtype = np.dtype(metadata["data_type"])
        self.shape = tuple(metadata["shape"])
        self.chunks = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])

    def __getitem__(self, which: Any) -> NDArray[Any]:
        """Return rows, or a part of the columns of rows."""
        rows, columns = self._parts(which)
        found = np.empty((rows.stop - rows.start, *self.shape[1:]), self._dtype)
        for number, inside, outside in self._chunks(rows):
            found[outside] = self._chunk(number)[inside]
        return found[:, columns] if found.ndim > 1 else found

    def __setitem__(self, which: Any, values: NDArray[Any]) -> None:
        """Write rows, or a part of the columns of rows; chunks that are written in part are read before."""
        rows, columns = self._parts(which)
        whole = columns == slice(0, self.shape[1]) if len(self.shape) > 1 else True
        for number, inside, outside in self._chunks(rows):
            if whole and inside.start == 0 and rows.start + outside.stop in (self.shape[0], self._end_of(number)):
                chunk = values[outside]
            else:
                chunk = self._chunk(number)
                chunk[(inside, columns) if chunk.ndim > 1 else inside] = values[outside]
            name = self._path / chunk_name(number, len(self.shape))
            name.write_bytes(packed(np.asarray(chunk, self._dtype), self.chunks[0]))

    def _parts(self, which: Any) -> tuple[slice, slice]:
        """Return the rows and the columns that are meant, from where to where."""
        parts = (slice(None), slice(None)) if which is Ellipsis else which if isinstance(which, tuple) else (which,)
        ranges = [slice(*part.indices(length)[:2]) for part, length in zip(parts, self.shape, strict=False)]
        return ranges[0], ranges[1] if len(ranges) > 1 else slice(0, *self.shape[1:2])

    def _chunks(self, rows: slice) -> Iterator[tuple[int, slice, slice]]:
        """Yield each chunk that has some of these rows: its number, and the rows as counted in it and among them."""
        height = self.chunks[0]
        for number in range(rows.start // height, -(-rows.stop // height)):
            first, stop = max(rows.start, number * height), min(rows.stop, self._end_of(number))
            inside = slice(first - number * height, stop - number * height)
            yield number, inside, slice(first - rows.start, stop - rows.start)

    def _end_of(self, number: int) -> int:
        return int((number + 1) * self.chunks[0])

    def _chunk(self, number: int) -> NDArray[Any]:
        chunk = np.full(self.chunks, fill_value(self._dtype), self._dtype)
        try:
            data = (self._path / chunk_name(number, len(self.shape))).read_bytes()
        except FileNotFoundError:  # it reads as the fill value, as zarr has it
            return chunk
        unpack_into(chunk, data)
        return chunk
