"""Where the tiles of a fold come from: the rows of one store, or of two stores side by side.

    StoredTiles     tile t of a layer, as it was captured
    PairedTiles     tile t of the joint rows [x | z]: x from one store, z from another that saw the same batches

A source is a few names, so a task that has one can be sent to another process, and is opened where it runs. The height
of a tile is a power of two that never grows with the width, so a joint tile is a part of one tile of x and one of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreDamagedError,
    StoreError,
    StoreNotFoundError,
)
from dalr_stream.numerics.rows.tiling import Tile, tile_rows
from dalr_stream.numerics.statistics.cross import joint_rows
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.storage.manifest import DomainRecord, RowsRecord
from dalr_stream.storage.store import ActivationStore


class TileSource(Protocol):
    """Names of rows on disk."""

    def open(self) -> OpenTiles:
        """Return them opened for reading, in the process that asks."""

    def resolved(self) -> TileSource:
        """Return the same with whole paths, for a process with another working folder."""

    @property
    def manifests(self) -> Sequence[Path]:
        """The files that say which rows count: who reads the rows must see them."""


class OpenTiles(Protocol):
    """Rows on disk, tile by tile."""

    @property
    def rows(self) -> RowsRecord:
        """What is known of them."""

    @property
    def fingerprint(self) -> str:
        """Digest of the rows: equal digests, equal rows."""

    @property
    def tiles(self) -> int:
        """How many."""

    @property
    def beside_tile_bytes(self) -> int:
        """What reading a tile holds besides the tile and its bytes before they are unpacked."""

    def require_rows(self) -> None:
        """Raise StoreError where a capture was not finished, and where its rows are not there."""

    def read(self, number: int) -> Tile:
        """Return one tile; raises StoreDamagedError where it does not match its digest."""


@dataclass(frozen=True, slots=True)
class StoredTiles:
    """The rows of one layer on one domain of a store."""

    root: Path
    domain: str
    layer: str

    def open(self) -> OpenStore:
        """Read the manifest."""
        return OpenStore(ActivationStore(self.root), self.domain, self.layer)

    def resolved(self) -> StoredTiles:
        """Return the same with a whole path."""
        return replace(self, root=self.root.resolve())

    @property
    def manifests(self) -> Sequence[Path]:
        """The store's."""
        return [self.root / MANIFEST]


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

    def resolved(self) -> PairedTiles:
        """Return the same with whole paths."""
        return PairedTiles(self.inputs.resolved(), self.outputs.resolved())

    @property
    def manifests(self) -> Sequence[Path]:
        """Those of both stores."""
        return [*self.inputs.manifests, *self.outputs.manifests]


@dataclass(frozen=True, slots=True)
class OpenStore:
    """One layer of a store, opened."""

    store: ActivationStore
    domain: str
    layer: str

    @property
    def record(self) -> DomainRecord:
        """What is known of its domain."""
        return self.store.domain(self.domain)

    @property
    def rows(self) -> RowsRecord:
        """What is known of its rows."""
        return self.store.rows(self.domain, self.layer)

    @property
    def fingerprint(self) -> str:
        """Digest of the rows."""
        return self.record.fingerprint(self.layer)

    @property
    def beside_tile_bytes(self) -> int:
        """Nothing."""
        return 0

    @property
    def tiles(self) -> int:
        """Of the layer."""
        return self.store.tiles(self.domain, self.layer)

    def require_rows(self) -> None:
        """Raise StoreError where the capture was not finished, StoreNotFoundError where the rows are not there."""
        record, root, domain, layer, rows = self.record, self.store.root, self.domain, self.layer, self.rows
        if not record.complete:
            raise StoreError(
                f"'{root}': domain '{domain}' is not complete ({record.committed_samples} samples are committed): "
                "run the capture again, it goes on where it stopped"
            )
        if record.samples and not rows.rows:
            raise StoreError(
                f"'{root}': no row of layer '{layer}' on '{domain}' counts: captured were {record.choice}; capture "
                "to another store with a mask that keeps some"
            )
        if not rows.covers(record.samples):
            raise StoreDamagedError(
                f"'{root}': layer '{layer}' on '{domain}' has {rows.rows} rows, which are not those of "
                f"{record.samples} samples: capture the domain again"
            )
        has_rows = self.store.has_rows(domain, layer)
        if rows.rows and has_rows and not rows.tile_digests:
            raise StoreDamagedError(
                f"'{root}': the manifest names no tile of layer '{layer}' on '{domain}': capture the domain again"
            )
        if rows.rows and not has_rows:
            origin = f"was merged from {len(record.shards)} stores and " if record.shards else ""
            raise StoreNotFoundError(
                f"'{root}': domain '{domain}' {origin}holds no rows of layer '{layer}': pass the holdout that its "
                "moments were made with to read them; for another one capture the rows again"
                + (", or accumulate the stores again and merge them" if record.shards else "")
            )

    def read(self, number: int) -> Tile:
        """Return one tile."""
        return self.store.read_tile(self.domain, self.layer, number)


class OpenPair:
    """Two stores opened side by side. Where a tile of one is higher than a joint tile, it is read for each part."""

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
    def tiles(self) -> int:
        """Of joint rows."""
        return -(-self.rows.rows // tile_rows(self.rows.features))

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

    def read(self, number: int) -> Tile:
        """Return one joint tile."""
        height = tile_rows(self.rows.features)
        x, z = (_part(side, number * height, height) for side in (self._inputs, self._outputs))
        if not np.array_equal(x.samples, z.samples):
            raise InvalidInputError(
                f"'{self._inputs.layer}' and '{self._outputs.layer}' cannot be paired: from row {number * height} "
                "on, their rows are of other samples"
            )
        return replace(x, number=number, rows=joint_rows(x.rows, z.rows))


def _part(side: OpenStore, first: int, height: int) -> Tile:
    """Return rows `first` to `first + height` of a layer, as far as there are any, all of them in one of its tiles."""
    own = tile_rows(side.rows.features)
    tile = side.read(first // own)
    part = slice(first % own, first % own + height)
    return Tile(tile.number, tile.rows[part], tile.samples[part], tile.begins[part])
