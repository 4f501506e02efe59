"""Schedules folds over the tiles of a store; the numbers are decided elsewhere.

Tasks (`lanes.LaneTask`) are pure and keyed by the data they read, so a scheduler may run them anywhere, in any order,
and again after a failure. Layers are done one after the other, so memory is one layer's lanes and never grows with the
number of rows. A wide layer has one lane: on threads its blocks are shared, on a cluster its strips are, and where
even one matrix does not fit, strips are folded one after the other, each in a pass over the rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dask.base import compute
from dask.delayed import delayed

from dalr_stream.errors import StoreDamagedError, StoreError, StoreNotFoundError
from dalr_stream.numerics.linalg.rank_k import one_blas_thread
from dalr_stream.numerics.statistics.fold_rule import Strip, strips
from dalr_stream.numerics.statistics.folding import LaneState, SplitMoments, join_strips, merge_all
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.cluster import Cluster
from dalr_stream.streaming.folding import Threads, Workers
from dalr_stream.streaming.lanes import LaneTask, Pace, TileDone, fold_lane, located, saved


@dataclass(frozen=True, slots=True)
class Watch:
    """Progress of an accumulation, and the checkpoints that let it resume after a kill."""

    tile_done: TileDone | None = None
    checkpoints: Checkpoints | None = None
    pace: Callable[[], Pace] = Pace


def accumulate_layer(
    store: ActivationStore, task: LaneTask, workers: Workers, watch: Watch | None = None
) -> SplitMoments:
    """Return the moments of one layer's committed rows on one domain, training and held-out.

    The same rows give the same bits for any workers, threads or processes, and any batching at capture. Peak memory:
    one accumulator of 8 d^2 bytes a lane (twice that with a held-out share), and two tiles a worker; on a cluster a
    worker holds one lane, or one strip, and this process all of them.

    Raises StoreError where the domain is not complete or a tile is damaged.
    """
    domain, layer = task.domain, task.layer
    require_rows(store, domain, layer)
    task, watch = located(store, task), watch or Watch()
    if isinstance(workers, Cluster):
        return _on_cluster(store, task, workers, watch)
    if task.rule.lanes == 1:
        return next(accumulate_strips(store, task, [Strip(0, task.rule.features)], workers, watch)).moments()
    fold = delayed(_fold_and_freeze, pure=True)
    key = _key(task)
    with one_blas_thread(), _together(workers.workers, watch) as (pool, watched):
        lanes = [fold(lane, watched, dask_key_name=f"{key}-{lane.name}") for lane in _lanes(task)]
        folded: tuple[SplitMoments, ...] = compute(*lanes, scheduler="threads", pool=pool)
        return merge_all(folded)


def accumulate_strips(
    store: ActivationStore, task: LaneTask, cut: Sequence[Strip], threads: Threads, watch: Watch
) -> Iterator[LaneState]:
    """Yield the strips of a one-lane layer, ascending, each from a pass of its own over the rows."""
    require_rows(store, task.domain, task.layer)
    task = located(store, task)
    cutting = len(cut) > 1
    for strip in cut:
        one = replace(task, strip=strip if cutting else None)
        with _pool(threads.workers) as executor:
            state = fold_lane(
                one, executor, checkpoints=watch.checkpoints, pace=watch.pace(), tile_done=watch.tile_done
            )
        if cutting and watch.checkpoints is not None:  # the record is not whole before the last strip
            watch.checkpoints.save(one.name, saved(store.tiles(task.domain, task.layer), state))
        yield state


def require_rows(store: ActivationStore, domain: str, layer: str) -> None:
    """Raise StoreError where a domain's capture was not finished, and where its rows are not there."""
    record = store.domain(domain)
    if not record.complete:
        raise StoreError(
            f"'{store.root}': domain '{domain}' is not complete ({record.committed_samples} samples are committed): "
            "run the capture again, it goes on where it stopped"
        )
    rows = store.rows(domain, layer)
    if not rows.covers(record.samples):
        raise StoreDamagedError(
            f"'{store.root}': layer '{layer}' on '{domain}' has {rows.rows} rows, which are not those of "
            f"{record.samples} samples: capture the domain again"
        )
    if rows.rows and store.has_rows(domain, layer) and not rows.tile_digests:
        raise StoreDamagedError(
            f"'{store.root}': the manifest names no tile of layer '{layer}' on '{domain}': capture the domain again"
        )
    if rows.rows and not store.has_rows(domain, layer):
        origin = f"was merged from {len(record.shards)} stores and " if record.shards else ""
        raise StoreNotFoundError(
            f"'{store.root}': domain '{domain}' {origin}holds no rows of layer '{layer}': pass the holdout that its "
            "moments were made with to read them; for another one capture the rows again"
            + (", or accumulate the stores again and merge them" if record.shards else "")
        )


def _key(task: LaneTask) -> str:
    """Return a name for the folds of these very rows: equal names, equal results."""
    digests = () if task.rows is None else task.rows.tile_digests
    return f"fold-{task.domain}-{task.layer}-{digest_of([str(task.root), digests])[:16]}"


def _lanes(task: LaneTask) -> list[LaneTask]:
    return [replace(task, lane=lane) for lane in range(task.rule.lanes)]


def _fold_and_freeze(task: LaneTask, watch: Watch) -> SplitMoments:
    return fold_lane(task, checkpoints=watch.checkpoints, pace=watch.pace(), tile_done=watch.tile_done).moments()


def _on_cluster(store: ActivationStore, task: LaneTask, cluster: Cluster, watch: Watch) -> SplitMoments:
    """Fold lanes, or the strips of the one lane, on the cluster's workers; join them here."""
    rule = task.rule
    task = replace(task, root=task.root.resolve())  # a worker may have another working folder
    wide = rule.lanes == 1
    cells = rule.features * rule.features // 2 // max(cluster.workers, 1)
    tasks = _lanes(task)
    if wide:
        tasks = [replace(task, strip=strip) for strip in strips(rule.features, cells)]
    prefix = _key(task)
    rows = store.rows(task.domain, task.layer).rows
    reported = 0

    def done(finished: int) -> None:
        nonlocal reported
        if watch.tile_done is not None:
            now = rows * finished // len(tasks)
            watch.tile_done(now - reported)
            reported = now

    named = {f"{prefix}-{task.name}-{rule}": (task,) for task in tasks}
    states = cluster.map(fold_lane, named, done, reads=task.root / MANIFEST)
    if not wide:
        return merge_all([state.moments() for state in states])
    heldout = [state.heldout for state in states if state.heldout is not None]
    return LaneState(
        join_strips([state.training for state in states]), join_strips(heldout) if heldout else None
    ).moments()


@contextmanager
def _together(workers: int, watch: Watch) -> Iterator[tuple[Executor, Watch]]:
    """Threads that end together: when one lane fails, or the user interrupts, the others stop at their next tile.

    None goes on behind the caller's back, where it would write checkpoints to a store that is no longer locked.
    """
    stop = threading.Event()

    def tile_done(rows: int) -> None:
        if stop.is_set():
            raise CancelledError
        if watch.tile_done is not None:
            watch.tile_done(rows)

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool, replace(watch, tile_done=tile_done)
        except BaseException:
            stop.set()
            raise


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """Threads that share a wide matrix's blocks; none where one worker does them all."""
    if workers == 1:
        yield None
        return
    with ThreadPoolExecutor(workers) as executor:
        yield executor
