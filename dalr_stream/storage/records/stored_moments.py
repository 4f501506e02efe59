"""Moments whose matrix stays on disk: solvers and error curves ask for products with it, which read it block by block.

At 25,088 features a matrix takes 5 GB, its vectors less than a megabyte.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.statistics.products import FEW_ROWS, ByBlocks, ByRows, Products, block_rows
from dalr_stream.numerics.types import Matrix
from dalr_stream.storage.arrays import open_array
from dalr_stream.storage.metadata import read_metadata
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.draft import arrays_of
from dalr_stream.storage.records.moments import SCATTER, VECTORS, features_of_moments, load_moments
from dalr_stream.storage.records.record import REMEDY, attributes, holding, load_record, reading
from dalr_stream.storage.schema import require_count

Rows = Iterable[NDArray[Any]]


def open_moments(path: Place, rows: Callable[[], Rows | None] = lambda: None) -> Moments:
    """Return a moment record whose matrix is read when it is needed, a block at a time; of one block, at once.

    `rows` gives those it is of, where they are kept: products are taken with them where they are few. Raises
    StoreNotFoundError, and StoreDamagedError where the vectors do not match their digests, or a product finds that
    the matrix does not.
    """
    values, features = attributes(path), features_of_moments(path)
    if not features or block_rows(features) == features or not values.get("count"):
        return load_moments(path)
    arrays, values = load_record(path, VECTORS)
    with holding(path, "moments"):
        count, samples = (require_count(values[name]) for name in ("count", "samples"))
        return StoredMoments.on_disk(path, count, samples, arrays, values["digests"][SCATTER.name], rows())


class StoredMoments(Moments):
    """Moments with their scatter on disk; whoever asks for all of it gets it, and it is kept from then on."""

    __slots__ = ("_digest", "_path", "_rows")
    _path: Place
    _digest: int
    _rows: Rows | None

    @classmethod
    def on_disk(
        cls,
        path: Place,
        count: int,
        samples: int,
        vectors: dict[str, NDArray[Any]],
        digest: int,
        rows: Rows | None,
    ) -> StoredMoments:
        """Return the record at `path`; `digest` is that of its scatter."""
        nothing = np.broadcast_to(np.zeros(()), (vectors["mean"].size,) * 2)
        record = cls(count, samples, scatter=nothing, **vectors)
        object.__delattr__(record, "scatter")
        for name, value in (("_path", path), ("_digest", digest), ("_rows", rows)):
            object.__setattr__(record, name, value)
        return record

    def __getattr__(self, name: str) -> Any:
        if name != "scatter":
            raise AttributeError(f"moments have no attribute '{name}'")
        matrix = np.empty((self.features,) * 2)
        first = 0
        for block in _blocks(self._path, self._digest, self.features):
            matrix[first : first + len(block)] = block
            first += len(block)
        matrix.setflags(write=False)
        object.__setattr__(self, "scatter", matrix)
        return matrix

    @property
    def products(self) -> Products:
        """By the rows where they are kept and few, else by the matrix."""
        if self._rows is not None and self.count < FEW_ROWS * self.features:
            return ByRows(self._rows)
        return self._by_blocks

    @property
    def _by_blocks(self) -> ByBlocks:
        return ByBlocks(self.count, self.mean, partial(_blocks, self._path, self._digest, self.features))


def _blocks(path: Place, expected: int, features: int) -> Iterator[Matrix]:
    """Yield the scatter of a record, the next block read while one is worked with; the digest is compared last.

    Raises StoreNotFoundError where the record went, and FingerprintMismatchError where another took its place.
    """
    try:
        yield from _blocks_now(path, expected, features)
    except StoreDamagedError:
        if attributes(path)["digests"].get(SCATTER.name) != expected:
            raise FingerprintMismatchError(f"'{path}' was replaced since it was opened: open the store again") from None
        raise


def _blocks_now(path: Place, expected: int, features: int) -> Iterator[Matrix]:
    height, digest = block_rows(features), 0
    read = partial(_read_rows, path, arrays_of(path, attributes(path)) / SCATTER.name, features)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, 0)
        for first in range(0, features, height):
            block = coming.result()
            if first + height < features:
                coming = reader.submit(read, first + height)
            digest = zlib.crc32(block.reshape(-1).data.cast("B"), digest)
            yield block
    if digest != expected:
        raise StoreDamagedError(f"'{path}': array '{SCATTER.name}' does not match its digest; {REMEDY}")


def _read_rows(path: Place, scatter: Place, features: int, first: int) -> Matrix:
    with reading(path, SCATTER.name):
        shape = read_metadata(scatter)["shape"]
        if shape != [features, features]:
            raise StoreDamagedError(f"of shape {shape} for {features} features")
        stored = open_array(scatter)
        return np.ascontiguousarray(stored[first : first + block_rows(features)])
