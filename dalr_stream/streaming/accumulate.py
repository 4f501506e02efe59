"""Schedules folds over the tiles of a store; the numbers are decided elsewhere.

A task is one lane of one layer: it reads its tiles in order and folds them in place (`numerics.folding`). Tasks are
pure and keyed by the data they read, so a scheduler may run them anywhere, in any order, and again after a failure.
Layers are done one after the other, so memory is one layer's lanes and never grows with the number of rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

from dask.base import compute
from dask.delayed import delayed

from dalr_stream.errors import NonFiniteError, StoreError
from dalr_stream.numerics.folding import FoldRule, HoldoutRule, LaneFold, SplitMoments, merge_all
from dalr_stream.numerics.rank_k import one_blas_thread
from dalr_stream.storage.activations import ActivationStore

TileDone = Callable[[int], None]
"""Called with the number of rows of each tile that was folded, from the thread that folded it."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Run on this machine's threads; `workers` defaults to the cores this process may use."""

    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


def fold_rule(store: ActivationStore, domain: str, layer: str, holdout: HoldoutRule) -> FoldRule:
    """Return the rule by which this layer's rows are folded."""
    rows = store.rows(domain, layer)
    return FoldRule(rows.features, rows.rows_per_sample, holdout)


def accumulate_layer(
    store: ActivationStore,
    domain: str,
    layer: str,
    *,
    holdout: HoldoutRule,
    threads: Threads,
    tile_done: TileDone | None = None,
) -> SplitMoments:
    """Return the moments of one layer's committed rows on one domain, training and held-out.

    The same rows give the same bits for any number of workers and any batching at capture. Peak memory: one
    accumulator of 8 d^2 bytes a lane (twice that with a held-out share), and one tile a worker.

    Raises StoreError where the domain is not complete or a tile is damaged.
    """
    record = store.domain(domain)
    if not record.complete:
        raise StoreError(
            f"'{store.root}': domain '{domain}' is not complete ({record.committed_samples} samples are committed): "
            "run the capture again, it goes on where it stopped"
        )
    if record.shards:
        raise StoreError(
            f"'{store.root}': domain '{domain}' was merged from {len(record.shards)} stores and holds none of their "
            "rows: pass the holdout they were accumulated with to read its moments; for another one accumulate the "
            "stores again and merge them, and merge again too where a merge was killed"
        )
    rule = fold_rule(store, domain, layer, holdout)
    tiles = store.tiles(domain, layer)
    key = f"{domain}-{layer}-{record.fingerprint(layer)[:16]}"
    columns_at_once = rule.lanes == 1 and threads.workers > 1
    pool = ThreadPoolExecutor(threads.workers) if columns_at_once else nullcontext()
    with pool as executor, one_blas_thread():

        def fold_lane(lane: int) -> SplitMoments:
            fold = LaneFold(rule, executor)
            for tile in range(lane, tiles, rule.lanes):
                rows = store.read_tile(domain, layer, tile)
                try:
                    fold.update(tile, rows)
                except NonFiniteError as error:
                    raise NonFiniteError(f"layer '{layer}' on '{domain}', tile {tile}: {error}") from None
                if tile_done is not None:
                    tile_done(rows.shape[0])
            return fold.freeze()

        fold = delayed(fold_lane, pure=True)
        lanes = [fold(lane, dask_key_name=f"fold-{key}-{lane}") for lane in range(rule.lanes)]
        return merge_all(compute(*lanes, scheduler="threads", num_workers=threads.workers))
