"""The rows of one layer that decide, read from a store a tile at a time, as often as a solver asks.

Those kept apart to measure the error are left out by the rule that the accumulation used: the same seed and share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import Rows
from dalr_stream.storage.writer import ActivationStore


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Training rows (t, d) of a layer on a domain, in the order they were captured.

    Each pass reads the tiles anew and raises StoreDamagedError where one does not match its digest. Moments outlive the
    activations, these rows do not: after `delete_activations` going through them raises StoreNotFoundError.
    """

    store: ActivationStore
    domain: str
    layer: str
    holdout: HoldoutRule = field(default_factory=HoldoutRule)

    def __iter__(self) -> Iterator[Rows]:
        for number in range(self.store.tiles(self.domain, self.layer)):
            tile = self.store.read_tile(self.domain, self.layer, number)
            kept = tile.rows[~self.holdout.mask(tile.samples)]
            if len(kept):
                yield kept
