"""A store opened for reading, and the training rows of one of its layers.

Readers clip to the manifest and never change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dalr_stream.errors import StoreNotFoundError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import Rows, Tile
from dalr_stream.storage.contents import DomainRecord, RowsRecord
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.storage.rows import read_tile, rows_exist
from dalr_stream.storage.summary import StoreSummary


class ActivationStore:
    """A store opened for reading: shows as one line, or in a notebook as a table, what it holds now."""

    def __init__(self, root: str | Place, manifest: Manifest | None = None) -> None:
        """`manifest` is the store's, where it was read already."""
        self.root = place_of(root)
        self.manifest = manifest or Manifest.read(self.root)

    def __repr__(self) -> str:
        return f"<{self._summary()}>"

    def _repr_html_(self) -> str:
        return self._summary()._repr_html_()

    def _summary(self) -> StoreSummary:
        return StoreSummary.of(self.root, self.manifest)

    def domain(self, name: str) -> DomainRecord:
        """Return what is known of one domain; raises StoreNotFoundError naming those there are."""
        try:
            return self.manifest.domains[name]
        except KeyError:
            known = ", ".join(sorted(self.manifest.domains)) or "none yet"
            raise StoreNotFoundError(f"'{self.root}' has no domain '{name}': it has {known}") from None

    def rows(self, domain: str, layer: str) -> RowsRecord:
        """Return what is known of one layer's rows on one domain."""
        record = self.domain(domain)
        if layer not in record.names:
            known = ", ".join(record.names)
            raise StoreNotFoundError(f"'{self.root}' has no layer '{layer}' on '{domain}': it has {known}")
        return record.layers[record.home(layer)]

    def has_rows(self, domain: str, layer: str) -> bool:
        """Tell whether the activations themselves are still there (moments outlive them)."""
        return rows_exist(self.root, domain, self.domain(domain).home(layer))

    def tiles(self, domain: str, layer: str) -> int:
        """Return the number of committed tiles."""
        return len(self.rows(domain, layer).tile_digests)

    def read_tile(self, domain: str, layer: str, tile: int) -> Tile:
        """Read tile number `tile` (at most T x d); raises StoreDamagedError where its digest does not match."""
        return read_tile(self.root, domain, self.domain(domain).home(layer), self.rows(domain, layer), tile)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Training rows (t, d) of a layer on a domain, or the held-out ones, in the order they were captured.

    Each pass reads the tiles anew and raises StoreDamagedError where one does not match its digest. Moments outlive the
    activations, these rows do not: after `delete_activations` going through them raises StoreNotFoundError.
    """

    store: ActivationStore
    domain: str
    layer: str
    holdout: HoldoutRule = field(default_factory=HoldoutRule)
    heldout: bool = False
    """Whether those that are held out are meant."""

    def __iter__(self) -> Iterator[Rows]:
        for number in range(self.store.tiles(self.domain, self.layer)):
            tile = self.store.read_tile(self.domain, self.layer, number)
            rows = tile.rows[self.holdout.mask(tile.samples) == self.heldout]
            if len(rows):
                yield rows
