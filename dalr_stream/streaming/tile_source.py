"""Where the tiles of a fold come from: the rows of a store, or others that are read likewise (`paired_tiles`).

A source is opened where the work is planned, which reads the manifest and refuses what cannot be folded. What the tasks
get is its `TileReader`: a few names and what the manifest says of the rows, so that no task reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from dalr_stream.errors import (
    StoreDamagedError,
    StoreError,
    StoreNotFoundError,
)
from dalr_stream.numerics.rows.tiling import Tile, tile_rows
from dalr_stream.storage.contents import DomainRecord, RowsRecord
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.rows import read_tile
from dalr_stream.storage.store import ActivationStore


class TileReader(Protocol):
    """Reads tiles wherever it is sent."""

    @property
    def tiles(self) -> int:
        """How many."""

    def read(self, number: int) -> Tile:
        """Return one tile; raises StoreDamagedError where it does not match its digest."""

    def resolved(self) -> TileReader:
        """Return the same with whole paths, for a process with another working folder."""


class OpenTiles(Protocol):
    """Rows on disk, where the work on them is planned."""

    @property
    def rows(self) -> RowsRecord:
        """What is known of them."""

    @property
    def fingerprint(self) -> str:
        """Digest of where they lie and of every tile: equal digests, equal rows."""

    @property
    def reader(self) -> TileReader:
        """What reads them."""

    @property
    def beside_tile_bytes(self) -> int:
        """What reading a tile holds besides the tile and its bytes before they are unpacked."""

    def require_rows(self) -> None:
        """Raise StoreError where a capture was not finished, and where its rows are not there."""


class TileSource(Protocol):
    """Names of rows on disk."""

    @property
    def manifests(self) -> Sequence[Place]:
        """The files that say which rows count: who reads the rows must see them."""

    def open(self) -> OpenTiles:
        """Return them opened."""


@dataclass(frozen=True, slots=True)
class StoredTiles:
    """The rows of one layer on one domain of a store."""

    root: Place
    domain: str
    layer: str
    store: ActivationStore | None = field(default=None, repr=False, compare=False)
    """The same store, where it is open already: reading its manifest for each of many layers would be their square."""

    def open(self) -> OpenStore:
        """Read the manifest, where it was not read."""
        return OpenStore(self.store or ActivationStore(self.root), self.domain, self.layer)

    @property
    def manifests(self) -> Sequence[Place]:
        """The store's."""
        return [self.root / MANIFEST]


@dataclass(frozen=True, slots=True)
class StoreReader:
    """Reads the tiles of one layer."""

    root: Place
    domain: str
    home: str
    """The layer under whose name they lie."""
    rows: RowsRecord

    @property
    def tiles(self) -> int:
        """Committed ones."""
        return len(self.rows.tile_digests)

    def read(self, number: int) -> Tile:
        """Return one tile."""
        return read_tile(self.root, self.domain, self.home, self.rows, number)

    def resolved(self) -> StoreReader:
        """Return the same with a whole path."""
        return replace(self, root=self.root.resolve())

    def part(self, first: int, height: int) -> Tile:
        """Return rows `first` to `first + height`, as far as there are any, all of them in one tile."""
        own = tile_rows(self.rows.features)
        tile = self.read(first // own)
        rows = slice(first % own, first % own + height)
        return Tile(tile.number, tile.rows[rows], tile.samples[rows], tile.begins[rows])


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
        """Digest of the store's path and of the tiles."""
        return digest_of([str(self.store.root), self.rows.tile_digests])

    @property
    def beside_tile_bytes(self) -> int:
        """Nothing."""
        return 0

    @property
    def reader(self) -> StoreReader:
        """Of the layer's tiles."""
        return StoreReader(self.store.root, self.domain, self.record.home(self.layer), self.rows)

    def require_rows(self) -> None:
        """Raise StoreError where the capture was not finished, StoreNotFoundError where the rows are not there."""
        record, root, domain, layer, rows = self.record, self.store.root, self.domain, self.layer, self.rows
        if not record.complete:
            raise StoreError(
                f"'{root}': domain '{domain}' is not complete ({record.committed_samples} samples are committed): "
                "run the capture again, it resumes where it stopped"
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
