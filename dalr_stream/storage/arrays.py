"""Arrays of a store: made, and written a chunk at a time.

zarr says what an array's metadata are, and `metadata` writes them: zarr would write those of the parents at the same
time, from another thread, and on a failing disk leave that thread behind, still writing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore, ObjectStore

from dalr_stream.storage.metadata import FILE, write_metadata
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, write_file
from dalr_stream.storage.schema import MAX_CHUNK_BYTES, ArraySpec

ZSTD_LEVEL = 1


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """Return what elements that were never written read as: NaN among floats, so that a lost chunk is loud."""
    return np.nan if dtype.kind == "f" else -1


def open_array(path: Place, *, write: bool = False) -> zarr.Array[Any]:
    """Open an array, for reading or also for writing."""
    mode: Literal["r", "r+"] = "r+" if write else "r"
    if isinstance(path, BucketPath):
        return zarr.open_array(ObjectStore(path.bucket.client, read_only=not write), path=path.key, mode=mode)
    return zarr.open_array(path, mode=mode)


def create_array(
    path: Place,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    *,
    dimensions: Sequence[str],
    chunk_rows: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    on_its_way: bool = False,
) -> int:
    """Make an array in place of what is at `path` and return the rows of a chunk, in zstd of level 1 with a checksum.

    `on_its_way` as in `metadata.write_metadata`.

    Whoever makes it syncs the folder it is in. What was never written reads as `fill_value`.
    """
    if chunk_rows is None:
        row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
        chunk_rows = max(1, min(max(shape[0], 1), MAX_CHUNK_BYTES // row_bytes))
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
    if not isinstance(path, BucketPath):
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
    write_metadata(path, json.loads(files[FILE].to_bytes()), on_its_way=on_its_way)
    return chunk_rows


def chunk_name(number: int, dimensions: int) -> str:
    """Return where zarr looks for a chunk, below an array whose chunks span full rows."""
    return "/".join(["c", str(number), *"0" * (dimensions - 1)])


def packed(rows: NDArray[Any], height: int) -> bytes:
    """Return a chunk of `height` rows as zarr packs it; fewer are filled up."""
    if rows.shape[0] < height:
        chunk = np.full((height, *rows.shape[1:]), fill_value(rows.dtype), rows.dtype)
        chunk[: rows.shape[0]] = rows
        rows = chunk
    return bytes(Zstd(ZSTD_LEVEL, checksum=True).encode(np.ascontiguousarray(rows)))


def write_array(folder: Place, spec: ArraySpec, values: NDArray[Any]) -> None:
    """Write one whole array of a record that is on its way."""
    attributes = {"meaning": spec.meaning}
    path = folder / spec.name
    rows = create_array(
        path,
        values.shape,
        values.dtype,
        dimensions=spec.dimensions,
        attributes=attributes,
        on_its_way=True,
    )
    blocks = range(0, values.shape[0] if values.size else 0, rows)  # all at once would hold many chunks twice
    if isinstance(path, BucketPath):
        for number, first in enumerate(blocks):
            write_file(path / chunk_name(number, values.ndim), packed(values[first : first + rows], rows))
        return
    array = open_array(path, write=True)
    for first in blocks:
        array[first : first + rows] = values[first : first + rows]
