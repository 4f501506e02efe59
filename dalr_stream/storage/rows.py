"""One layer's rows on one domain, on disk: one tile per chunk, and where samples may differ the sample of each row.

    activations/<domain>/<layer>            rows x features
    activations/<domain>/<layer>@sample     rows; only of sequences, and under a mask or a router

Elsewhere every sample gives the same number of rows, and the sample of a row follows from its number.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.rows.tiling import VARYING, Rows, Samples, Tile, Tiler, tile_rows
from dalr_stream.storage.arrays import create_array, open_array
from dalr_stream.storage.chunks import chunk_name, unpack_into
from dalr_stream.storage.contents import RowsRecord
from dalr_stream.storage.metadata import make_group, read_metadata
from dalr_stream.storage.places.place import Place, below, is_there, readable
from dalr_stream.storage.schema import DECODE_ERRORS, LAYER, ROWS, SAMPLES
from dalr_stream.storage.tiles import tiles_of


def rows_path(domain: str, layer: str) -> PurePath:
    """Return where a layer's rows lie, relative to the store."""
    return PurePath("activations") / domain / layer


def rows_exist(root: Place, domain: str, layer: str) -> bool:
    """Tell whether the rows themselves are there."""
    return is_there(root / rows_path(domain, layer))


def read_tile(root: Place, domain: str, layer: str, record: RowsRecord, number: int) -> Tile:
    """Read one committed tile; raises StoreNotFoundError, and StoreDamagedError where its digest does not match."""
    name = f"'{root}': tile {number} of layer '{layer}' on '{domain}'"
    path = root / rows_path(domain, layer)
    height = tile_rows(record.features)
    first, stop = number * height, min((number + 1) * height, record.rows)
    remedy = f"delete '{path}' and capture the domain again"
    try:
        with readable(path):
            rows = _read_chunk(path, record, number)[: stop - first]
            samples = _samples(path, record, first, stop)
    except (StoreDamagedError, *DECODE_ERRORS) as error:
        if not rows_exist(root, domain, layer):
            gone = f"{name} is gone: the activations were deleted; capture again to use the rows"
            raise StoreNotFoundError(gone) from None
        raise StoreDamagedError(f"{name} is damaged: {error}; {remedy}") from error
    tile = Tile.of(number, rows, samples[-rows.shape[0] :], int(samples[0]) if first else -1)
    if digest_of_tile(tile, record) != record.tile_digests[number]:
        raise StoreDamagedError(f"{name} is damaged: its digest does not match; {remedy}")
    if record.rows_per_sample == VARYING and stop == record.rows and tile.samples[-1] != record.whole_samples:
        last = f"it ends with rows of sample {tile.samples[-1]}, its layer with those of {record.whole_samples}"
        raise StoreDamagedError(f"{name} is damaged: {last}; {remedy}")
    return tile


def digest_of_tile(tile: Tile, record: RowsRecord) -> int:
    """CRC-32 of the rows, and of their samples where these are kept: 4 GB/s, against damage, not against malice."""
    digest = zlib.crc32(_bytes(tile.rows))
    return zlib.crc32(_bytes(tile.samples), digest) if record.rows_per_sample == VARYING else digest


class RowsWriter:
    """Batches of rows in, chunks out."""

    def __init__(self, root: Place, domain: str, layer: str, record: RowsRecord, samples_before: int) -> None:
        """Go on from `record`, with the batch that begins with sample number `samples_before`."""
        self.form = dataclasses.replace(record, tile_digests=())
        """What is written, less the digests: a tuple of them for each tile would cost their square."""
        self._digests = list(record.tile_digests)
        self._path = root / rows_path(domain, layer)
        varying = record.rows_per_sample == VARYING
        self._paths = [self._path, *([_samples_path(self._path)] if varying else [])]
        height = tile_rows(record.features)
        if record.rows == 0:
            self._create(root)
        self._tiles = [tiles_of(root, path, height) for path in self._paths]
        if record.rows:
            for tiles in self._tiles:
                tiles.keep(len(self._digests), record.rows)
        self._drop, last = self._committed_from(samples_before)
        self._tiler = Tiler(height, first_tile=record.rows // height, sample_before=last)
        self._samples = samples_before

    @property
    def record(self) -> RowsRecord:
        """What is written; safely on disk after `sync`."""
        return dataclasses.replace(self.form, tile_digests=tuple(self._digests))

    def push(self, rows: Rows, samples: Samples, samples_so_far: int) -> bool:
        """Take a batch's rows, less those already on disk; True where a tile became full.

        `samples` has the number of each row's sample, `samples_so_far` counts all up to this batch: some have no row.
        """
        self._samples = samples_so_far
        dropped = min(self._drop, rows.shape[0])
        self._drop -= dropped
        return self._write_all(self._tiler.push(rows[dropped:], samples[dropped:]))

    def flush(self) -> None:
        """Write what is left as a shorter tile: these are all rows."""
        self._write_all(self._tiler.flush())
        if self.form.rows_per_sample == VARYING:
            self.form = dataclasses.replace(self.form, samples=self._samples)

    def sync(self) -> None:
        """Force the tiles written since the last call, and the arrays' metadata, to disk."""
        for tiles in self._tiles:
            tiles.sync()

    def _write_all(self, tiles: Iterator[Tile]) -> bool:
        wrote = False
        for tile in tiles:
            self._write(tile)
            wrote = True
        return wrote

    def _write(self, tile: Tile) -> None:
        first, rows = self.form.rows, self.form.rows + tile.rows.shape[0]
        for tiles, values in zip(self._tiles, (tile.rows, tile.samples), strict=False):
            tiles.write(tile.number, first, values)
        self._digests.append(digest_of_tile(tile, self.form))
        whole = int(tile.samples[-1]) if self.form.rows_per_sample == VARYING else 0
        self.form = dataclasses.replace(self.form, rows=rows, whole_samples=whole)

    def _committed_from(self, sample: int) -> tuple[int, int]:
        """Return how many committed rows come from `sample` on, and the sample of the last committed row."""
        rows, per_sample = self.form.rows, self.form.rows_per_sample
        if rows == 0:
            return 0, -1
        if per_sample != VARYING:
            return max(rows - sample * per_sample, 0), (rows - 1) // per_sample
        height = tile_rows(self.form.features)
        after, stop = 0, rows
        while stop:  # backwards: the batch to replay begins near the end
            first = (stop - 1) // height * height
            here = _read(_samples_path(self._path), first, stop)
            after += int((here >= sample).sum())
            if here[0] < sample:
                break
            stop = first
        return after, int(_read(_samples_path(self._path), rows - 1, rows)[0])

    def _create(self, root: Place) -> None:
        folder, height = self._path.parent, tile_rows(self.form.features)
        make_group(root, below(root, folder))
        shapes = (0, self.form.features), (0,)
        dtypes = np.dtype(self.form.dtype), np.dtype(np.int64)
        for path, spec, shape, dtype in zip(self._paths, (ROWS, SAMPLES), shapes, dtypes, strict=False):
            dimensions = [name.replace(LAYER, self._path.name) for name in spec.dimensions]
            create_array(path, shape, dtype, dimensions=dimensions, chunk_rows=height)


def _samples(path: Place, record: RowsRecord, first: int, stop: int) -> Samples:
    """Return the samples of the rows from the one before `first`, where there is one, to `stop`."""
    begin = max(first - 1, 0)
    if record.rows_per_sample == VARYING:
        return _read(_samples_path(path), begin, stop)
    return np.arange(begin, stop, dtype=np.int64) // record.rows_per_sample


def _samples_path(path: Place) -> Place:
    return path.with_name(f"{path.name}@sample")


def _read(path: Place, first: int, stop: int) -> NDArray[Any]:
    read_metadata(path)
    return np.ascontiguousarray(open_array(path)[first:stop])


def _read_chunk(path: Place, record: RowsRecord, number: int) -> NDArray[Any]:
    """Unpack one chunk straight into the array returned."""
    if number == 0:
        _require_form(path, record)
    rows = np.empty((tile_rows(record.features), record.features), record.dtype)
    unpack_into(rows, (path / chunk_name(number, 2)).read_bytes())
    return rows


def _require_form(path: Place, record: RowsRecord) -> None:
    """Raise StoreDamagedError for the metadata of another array; nothing that is read depends on them."""
    document = read_metadata(path)
    shape = document["shape"]
    if (shape[1:], document["data_type"]) != ([record.features], record.dtype) or shape[0] < record.rows:
        raise StoreDamagedError(f"'{path}': its metadata are those of another array")
    if document["dimension_names"] != [name.replace(LAYER, path.name) for name in ROWS.dimensions]:
        raise StoreDamagedError(f"'{path}': its metadata are those of another layer")


def _bytes(array: NDArray[np.generic]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).data.cast("B")
