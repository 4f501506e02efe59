"""One task of an accumulation: a lane's tiles, or one strip of them, read in order and folded in place.

A task is a function of committed rows alone. It may run on any thread, in any process, and again after a failure, and
gives the same bits; nothing outside it changes except, where asked for, its checkpoint.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from dalr_stream.errors import NonFiniteError, ResourceError
from dalr_stream.numerics.linalg.rank_k import blas_build, one_blas_thread
from dalr_stream.numerics.rows.tiling import Tile
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.fold_rule import ANY_BLAS, FoldRule, Strip
from dalr_stream.numerics.statistics.folding import LaneFold, LaneState
from dalr_stream.storage.checkpoints import Checkpoints, SavedFold
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.tile_source import StoredTiles, TileReader, TileSource

TileDone = Callable[[int], None]
"""Called with the number of rows of each tile that was folded, from the thread that folded it."""

SHARE_FOR_CHECKPOINTS = 0.02
"""Of the time since the last checkpoint: writing one may cost this much, so hours of work lose minutes at a kill."""


@dataclass(frozen=True, slots=True)
class LaneTask:
    """Which rows to fold into what."""

    root: Place
    domain: str
    layer: str
    rule: FoldRule
    lane: int = 0
    strip: Strip | None = None
    """Of the scatter matrix; the whole where none is named."""
    backend: Backend = field(default_factory=Backend)
    """What the rule's engine names: it can be sent to another process."""
    source: TileSource | None = None
    """Where the tiles come from; from that store and layer where nothing else is named."""
    reader: TileReader | None = None
    """The source as it was opened where the work was planned, so that no lane reads a manifest again."""
    readers: int = 1
    """Threads that read and unpack tiles ahead of the one being folded; a device is faster than one of them."""
    partition: int | None = None
    """Whose rows are folded, one of `rule.partitions`."""

    @property
    def tiles(self) -> TileSource:
        """Where the tiles come from."""
        return self.source or StoredTiles(self.root, self.domain, self.layer)

    @property
    def name(self) -> str:
        """Unique among the tasks of one layer."""
        partition = "" if self.partition is None else f"-partition-{self.partition}"
        return f"lane-{self.lane}{partition}" + (f"-rows-{self.strip.first}" if self.strip else "")


@dataclass(slots=True)
class Pace:
    """When a checkpoint is worth its cost; `every_tiles` replaces the clock where given."""

    every_tiles: int | None = None
    clock: Callable[[], float] = time.monotonic
    _since: float = field(default=-1.0, init=False)
    _price: float = field(default=1.0, init=False)
    _tiles: int = field(default=0, init=False)

    def due(self) -> bool:
        """Tell, after a tile, whether to write a checkpoint now."""
        self._tiles += 1
        if self.every_tiles is not None:
            return self._tiles % self.every_tiles == 0
        if self._since < 0.0:
            self._since = self.clock()
        return self._price <= SHARE_FOR_CHECKPOINTS * (self.clock() - self._since)

    def paid(self, begun: float) -> None:
        """Take note of a checkpoint whose writing began at `begun`."""
        self._since = self.clock()
        self._price = self._since - begun


def fold_lane(
    task: LaneTask,
    executor: Executor | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    pace: Pace | None = None,
    tile_done: TileDone | None = None,
) -> LaneState:
    """Return what the lane sums up to.

    Parameters
    ----------
    executor
        Shares the blocks of a wide matrix among its threads.
    checkpoints
        Where an earlier attempt may have left its state, and where this one leaves its own at the given pace.

    Raises NonFiniteError naming layer, domain and tile; StoreDamagedError, StoreNotFoundError.
    """
    _require_same_blas(task.rule.blas)
    reader = task.reader or task.tiles.open().reader
    first, state = task.lane, LaneState.empty(task.rule, task.strip)
    checkpoint = checkpoints.load(task.name) if checkpoints else None
    if checkpoint is not None:
        first, state = checkpoint.values["next_tile"], checkpoint.lanes[0]
    pace = pace or Pace()
    fold = LaneFold(task.rule, executor, state=state, new_fold=task.backend.new_fold, partition=task.partition)
    tiles = range(first, reader.tiles, task.rule.lanes)
    with one_blas_thread():
        if tile_done is not None and first > task.lane:
            tile_done((first - task.lane) // task.rule.lanes * task.rule.tile_rows)
        for tile in _read_ahead(reader, task, tiles):
            try:
                fold.update(tile)
            except NonFiniteError as error:
                raise NonFiniteError(f"layer '{task.layer}' on '{task.domain}', tile {tile.number}: {error}") from None
            if tile_done is not None:
                tile_done(tile.rows.shape[0])
            if checkpoints is not None and pace.due():
                begun = pace.clock()
                checkpoints.save(task.name, saved(tile.number + task.rule.lanes, fold.state()))
                pace.paid(begun)
    return fold.state()


def _require_same_blas(expected: str) -> None:
    """Raise ResourceError where a worker would round otherwise than the others."""
    if expected not in ("", ANY_BLAS, blas_build()):
        raise ResourceError(
            f"cluster: worker '{platform.node()}' takes products with {blas_build()}, this run with {expected}: "
            "bits would depend on who folds what; use workers of one installation and kind of CPU, give all the same "
            "OPENBLAS_CORETYPE, or accept it with any_blas=True (--any-blas, accumulate.any_blas), which is recorded"
        )


def saved(next_tile: int, state: LaneState) -> SavedFold:
    """Return the checkpoint of a lane that resumes with tile number `next_tile`."""
    return SavedFold([state], {"next_tile": next_tile})


def _read_ahead(reader: TileReader, task: LaneTask, tiles: range) -> Iterator[Tile]:
    """Yield the tiles in order, each read while those before it are folded."""

    def read(number: int) -> Tile:
        tile = reader.read(number)
        return replace(tile, rows=task.backend.stage(tile.rows))

    with ThreadPoolExecutor(task.readers) as readers:
        coming: deque[Future[Tile]] = deque()
        for number in tiles:
            coming.append(readers.submit(read, number))
            if len(coming) > task.readers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
