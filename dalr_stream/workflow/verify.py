"""Reads everything a store holds and compares it to its digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dalr_stream.errors import StoreDamagedError, StoreError
from dalr_stream.storage.activations import ActivationStore
from dalr_stream.storage.archive import check_record, load_moments, moments_path, records
from dalr_stream.workflow.accumulate import HELDOUT, TRAINING
from dalr_stream.workflow.merge import sum_of_shards


def verify_store(root: Path) -> Iterator[str]:
    """Yield a line for each domain's layer and each record that is whole.

    Raises StoreDamagedError at the first that is not, and StoreError for a domain whose capture was not finished.
    Activations that were deleted are said to be so; their moments do not depend on them. Merged moments are added up
    again from their shards.
    """
    store = ActivationStore(root)
    for domain, record in store.manifest.domains.items():
        if not record.complete:
            raise StoreError(f"'{root}': domain '{domain}' is not complete: run the capture again, it goes on")
        for layer, rows in record.layers.items():
            if record.shards:
                yield _verified_sum(store, domain, layer)
                continue
            if not store.has_rows(domain, layer):
                yield f"{domain}/{layer}: activations deleted"
                continue
            for tile in range(store.tiles(domain, layer)):
                store.read_tile(domain, layer, tile)
            yield f"{domain}/{layer}: {rows.rows:,} rows in {len(rows.tile_digests)} tiles"
    for path in records(root):
        check_record(path)
        yield f"{path.relative_to(root)}: whole"


def _verified_sum(store: ActivationStore, domain: str, layer: str) -> str:
    total = sum_of_shards(store.root, store.manifest, domain, layer)
    for part, expected in ((TRAINING, total.training), (HELDOUT, total.heldout)):
        path = moments_path(store.root, domain, layer, part)
        if not load_moments(path).same_bits(expected):
            raise StoreDamagedError(f"'{path}' is not the sum of its shards: merge again")
    return f"{domain}/{layer}: the sum of {len(store.domain(domain).shards)} shards"
