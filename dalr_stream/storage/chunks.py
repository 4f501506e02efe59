"""Chunks as zarr names and packs them: full rows, zstd of level 1 with a checksum."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from dalr_stream.storage.schema import MAX_CHUNK_BYTES

ZSTD_LEVEL = 1


def rows_of_chunk(shape: Sequence[int], itemsize: int) -> int:
    """Return how many rows a chunk of an array has where nothing else decides it: `MAX_CHUNK_BYTES` at most."""
    row_bytes = max(1, prod(shape[1:]) * itemsize)
    return max(1, min(max(shape[0], 1), MAX_CHUNK_BYTES // row_bytes))


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """Return what elements that were never written read as: NaN among floats, so that a lost chunk is loud."""
    return np.nan if dtype.kind == "f" else -1


def chunk_name(number: int, dimensions: int) -> str:
    """Return where zarr looks for a chunk, below an array whose chunks span full rows."""
    return "/".join(["c", str(number), *"0" * (dimensions - 1)])


def packed(rows: NDArray[Any], height: int) -> bytes:
    """Return a chunk of `height` rows; fewer are filled up, as zarr fills them."""
    if rows.shape[0] < height:
        chunk = np.full((height, *rows.shape[1:]), fill_value(rows.dtype), rows.dtype)
        chunk[: rows.shape[0]] = rows
        rows = chunk
    return bytes(Zstd(ZSTD_LEVEL, checksum=True).encode(np.ascontiguousarray(rows)))


def unpack_into(rows: NDArray[Any], data: bytes) -> None:
    """Unpack a chunk straight into the array it has the size of; zarr copies it twice on the way.

    Measured on 32 MiB of float32 after a ReLU: 58 ms against 80 ms, beside some 400 ms of arithmetic at 4,096 features.
    """
    Zstd().decode(data, out=rows)
