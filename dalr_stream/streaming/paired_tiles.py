"""Tiles of the joint rows [x | z]: x from one store, z from another that saw the same batches.

The height of a tile is a power of two that never grows with the width, so a joint tile is a part of one tile of x and
of one of z. Rows belong together by their number; the samples that they came from are compared, tile by tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError
from dalr_stream.numerics.rows.tiling import Tile, tile_rows
from dalr_stream.numerics.statistics.cross import joint_rows
from dalr_stream.storage.contents import DomainRecord, RowsRecord
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.tile_source import OpenStore, StoredTiles, StoreReader


@dataclass(frozen=True, slots=True)
class PairedTiles:
    """Rows of x in one store beside rows of z in another, sample for sample."""

    inputs: StoredTiles
    outputs: StoredTiles

    def open(self) -> OpenPair:
        """Read both manifests; raises FingerprintMismatchError where the samples are not the same."""
        pair = OpenPair(self.inputs.open(), self.outputs.open())
        pair.require_same_samples()
        return pair

    @property
    def manifests(self) -> Sequence[Place]:
        """Those of both stores."""
        return [*self.inputs.manifests, *self.outputs.manifests]


@dataclass(frozen=True, slots=True)
class PairReader:
    """Cuts joint tiles from those of two layers; where one of these is higher, it is read for each of its parts."""

    inputs: StoreReader
    outputs: StoreReader

    @property
    def height(self) -> int:
        """Rows of a joint tile."""
        return tile_rows(self.inputs.rows.features + self.outputs.rows.features)

    @property
    def tiles(self) -> int:
        """Of joint rows."""
        return -(-self.inputs.rows.rows // self.height)

    def read(self, number: int) -> Tile:
        """Return one joint tile; raises InvalidInputError where the rows are of other samples."""
        first, height = number * self.height, self.height
        x, z = self.inputs.part(first, height), self.outputs.part(first, height)
        if not np.array_equal(x.samples, z.samples):
            raise InvalidInputError(
                f"'{self.inputs.home}' and '{self.outputs.home}' cannot be paired: from row {first} on, their rows "
                "are of other samples"
            )
        return replace(x, number=number, rows=joint_rows(x.rows, z.rows))

    def resolved(self) -> PairReader:
        """Return the same with whole paths."""
        return PairReader(self.inputs.resolved(), self.outputs.resolved())


class OpenPair:
    """Two stores opened side by side."""

    def __init__(self, inputs: OpenStore, outputs: OpenStore) -> None:
        self._inputs = inputs
        self._outputs = outputs

    @property
    def rows(self) -> RowsRecord:
        """Of joint rows: d + m features, and no tile on disk."""
        x, z = self._inputs.rows, self._outputs.rows
        dtype = np.result_type(x.dtype, z.dtype).name
        return RowsRecord(x.features + z.features, dtype, x.rows_per_sample, x.rows)

    @property
    def record(self) -> DomainRecord:
        """What is known of the batches and the choice of rows, which are those of both."""
        record = self._inputs.record
        return DomainRecord(complete=True, batches=record.batches, choice=record.choice)

    @property
    def fingerprint(self) -> str:
        """Digest of both stores' rows."""
        return f"{self._inputs.fingerprint[:8]}{self._outputs.fingerprint[:8]}"

    @property
    def beside_tile_bytes(self) -> int:
        """The two tiles that a joint one is cut from."""
        sides = (self._inputs.rows, self._outputs.rows)
        return sum(tile_rows(rows.features) * rows.features * np.dtype(rows.dtype).itemsize for rows in sides)

    @property
    def reader(self) -> PairReader:
        """Of joint tiles."""
        return PairReader(self._inputs.reader, self._outputs.reader)

    def require_rows(self) -> None:
        """Raise StoreError where either lacks them."""
        self._inputs.require_rows()
        self._outputs.require_rows()

    def require_same_samples(self) -> None:
        """Raise FingerprintMismatchError where the stores did not see the same batches, or other rows of them."""
        x, z = self._inputs, self._outputs
        where = f"'{x.store.root}' and '{z.store.root}'"
        for number, (one, other) in enumerate(zip(x.record.batches, z.record.batches, strict=False)):
            if one != other:
                what = f"{one.samples} and {other.samples} samples" if one.samples != other.samples else "other inputs"
                raise FingerprintMismatchError(
                    f"{where} cannot be paired: batch {number} has {what}: capture both from the same batches in the "
                    "same order"
                )
        if len(x.record.batches) != len(z.record.batches):
            raise FingerprintMismatchError(
                f"{where} cannot be paired: they hold {len(x.record.batches)} and {len(z.record.batches)} batches: "
                "capture both from the same data"
            )
        if x.record.choice != z.record.choice:
            raise FingerprintMismatchError(
                f"{where} cannot be paired: they hold {x.record.choice}, and {z.record.choice}: choose the same rows"
            )
        if (x.rows.rows, x.rows.rows_per_sample) != (z.rows.rows, z.rows.rows_per_sample):
            raise FingerprintMismatchError(
                f"{where} cannot be paired: '{x.layer}' has {x.rows.rows} rows and '{z.layer}' {z.rows.rows}: of a "
                "convolution take every patch (most_patches=None), or pair while both networks run"
            )
