"""Arrays of a store: made, and written a chunk at a time.

zarr says what an array's metadata are, and `metadata` writes them: zarr would write those of the parents at the same
time, from another thread, and on a failing disk leave that thread behind, still writing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from dalr_stream.storage.buckets.array import BucketArray
from dalr_stream.storage.chunks import ZSTD_LEVEL, fill_value, rows_of_chunk
from dalr_stream.storage.metadata import FILE, read_metadata, write_metadata
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.schema import ArraySpec


def open_array(path: Place, *, write: bool = False) -> Any:
    """Open a zarr array, for reading or also for writing; in a bucket, what is read and written as one."""
    if isinstance(path, BucketPath):
        return BucketArray(path, read_metadata(path))
    return zarr.open_array(path, mode="r+" if write else "r")


def create_array(
    path: Place,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    *,
    dimensions: Sequence[str],
    chunk_rows: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    on_its_way: bool = False,
) -> Any:
    """Make an array in place of what is at `path`; its chunks span full rows, in zstd of level 1 with a checksum.

    `on_its_way` as in `metadata.write_metadata`.

    Whoever makes it syncs the folder it is in. What was never written reads as `fill_value`.
    """
    if chunk_rows is None:
        chunk_rows = rows_of_chunk(shape, dtype.itemsize)
    files: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(files),
        shape=tuple(shape),
        dtype=dtype,
        chunks=(chunk_rows, *(max(1, length) for length in shape[1:])),
        compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
        fill_value=fill_value(dtype),
        dimension_names=tuple(dimensions),
        attributes=dict(attributes or {}),
    )
    document = json.loads(files[FILE].to_bytes())
    if isinstance(path, BucketPath):
        write_metadata(path, document)
        return BucketArray(path, document)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    write_metadata(path, document, on_its_way=on_its_way)
    return open_array(path, write=True)


def write_array(folder: Place, spec: ArraySpec, values: NDArray[Any]) -> None:
    """Write one whole array of a record that is on its way."""
    attributes = {"meaning": spec.meaning}
    array = create_array(
        folder / spec.name,
        values.shape,
        values.dtype,
        dimensions=spec.dimensions,
        attributes=attributes,
        on_its_way=True,
    )
    rows = array.chunks[0]
    for first in range(0, values.shape[0] if values.size else 0, rows):  # all at once would hold many chunks twice
        array[first : first + rows] = values[first : first + rows]
