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
from functools import partial

from dask.base import compute
from dask.delayed import delayed

from dalr_stream.numerics.linalg.rank_k import one_blas_thread
from dalr_stream.numerics.statistics.fold_rule import Strip, strips
from dalr_stream.numerics.statistics.folding import LaneState, SplitMoments, join_strips
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.streaming.cluster import Cluster
from dalr_stream.streaming.folding import Threads, Workers
from dalr_stream.streaming.lanes import LaneTask, Pace, TileDone, fold_lane, saved
from dalr_stream.streaming.tile_source import OpenTiles
from dalr_stream.streaming.workers import libraries_of


@dataclass(frozen=True, slots=True)
class Watch:
    """Progress of an accumulation, and the checkpoints that let it resume after a kill."""

    tile_done: TileDone | None = None
    checkpoints: Checkpoints | None = None
    pace: Callable[[], Pace] = Pace


def accumulate_layer(task: LaneTask, workers: Workers, watch: Watch | None = None) -> SplitMoments:
    """Return the moments of one layer's committed rows on one domain, training and held-out.

    The same rows give the same bits for any workers, threads or processes, and any batching at capture. Peak memory:
    one accumulator of 8 d^2 bytes a lane (twice that with a held-out share), and two tiles a worker; on a cluster a
    worker holds one lane, or one strip, and this process all of them.

    Raises StoreError where the domain is not complete or a tile is damaged.
    """
    opened, watch = task.tiles.open(), watch or Watch()
    opened.require_rows()
    task = replace(task, reader=opened.reader)
    if isinstance(workers, Cluster):
        return _on_cluster(opened, task, workers, watch)
    if task.rule.lanes == 1:
        return next(accumulate_strips(task, [Strip(0, task.rule.features)], workers, watch)).moments()
    key = f"fold-{task.domain}-{task.layer}-{opened.fingerprint[:16]}"
    with one_blas_thread(), _together(workers.workers, watch) as (pool, watched):
        lanes = [
            delayed(partial(_fold_and_freeze, lane, watched))(dask_key_name=f"{key}-{lane.name}")  # not as arguments:
            for lane in _lanes(task)  # dask would look for its own in each of them, down to the digest of every tile
        ]
        folded: tuple[SplitMoments, ...] = compute(*lanes, scheduler="threads", pool=pool)
        return merge_all(folded)


def accumulate_strips(task: LaneTask, cut: Sequence[Strip], threads: Threads, watch: Watch) -> Iterator[LaneState]:
    """Yield the strips of a one-lane layer, ascending, each from a pass of its own over the rows."""
    opened = task.tiles.open()
    opened.require_rows()
    task = replace(task, reader=opened.reader)
    cutting = len(cut) > 1
    for strip in cut:
        one = replace(task, strip=strip if cutting else None)
        with _pool(threads.workers) as executor:
            state = fold_lane(
                one, executor, checkpoints=watch.checkpoints, pace=watch.pace(), tile_done=watch.tile_done
            )
        if cutting and watch.checkpoints is not None:  # the record is not whole before the last strip
            watch.checkpoints.save(one.name, saved(opened.reader.tiles, state))
        yield state


def _lanes(task: LaneTask) -> list[LaneTask]:
    return [replace(task, lane=lane) for lane in range(task.rule.lanes)]


def _fold_and_freeze(task: LaneTask, watch: Watch) -> SplitMoments:
    return fold_lane(task, checkpoints=watch.checkpoints, pace=watch.pace(), tile_done=watch.tile_done).moments()


def _on_cluster(opened: OpenTiles, task: LaneTask, cluster: Cluster, watch: Watch) -> SplitMoments:
    """Fold lanes, or the strips of the one lane, on the cluster's workers; join them here."""
    rule = task.rule
    manifests = task.tiles.manifests
    task = replace(task, source=None, reader=opened.reader.resolved())  # a worker may have another working folder
    wide = rule.lanes == 1
    cells = rule.features * rule.features // 2 // max(cluster.workers, 1)
    tasks = _lanes(task)
    if wide:
        tasks = [replace(task, strip=strip) for strip in strips(rule.features, cells)]
    prefix = f"fold-{task.domain}-{task.layer}-{opened.fingerprint[:16]}"
    rows = opened.rows.rows
    reported = 0

    def done(finished: int) -> None:
        nonlocal reported
        if watch.tile_done is not None:
            now = rows * finished // len(tasks)
            watch.tile_done(now - reported)
            reported = now

    named = {f"{prefix}-{task.name}-{rule}": (task,) for task in tasks}
    states = cluster.map(fold_lane, named, done, reads=manifests, libraries=libraries_of(rule))
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
