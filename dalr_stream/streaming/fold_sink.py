"""Folds rows as they come and keeps only sums; given a store, also checkpoints.

A checkpoint is every lane of every layer at the same batch, with the rows that fill no tile yet. It is written into the
one of two slots that the index does not name, and then the index is replaced: killed in between, the old one holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from dalr_stream.errors import FingerprintMismatchError, NonFiniteError
from dalr_stream.numerics.linalg.rank_k import one_blas_thread
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.tiling import RowBatch, Rows, Samples, Tile, Tiler, rows_per_sample, shared_rows
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.numerics.statistics.folding import LaneFold, LaneState, SplitMoments, Workspace, join_partitions
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.batches import Batches, BatchLog, BatchRecord
from dalr_stream.storage.checkpoints import Checkpoints, SavedFold
from dalr_stream.storage.contents import DomainRecord, RowsRecord, plain_fields
from dalr_stream.streaming.folding import Folding

INDEX = "index"


class FoldSink:
    """A RowSink that folds; `checkpoints` is where it finds and leaves checkpoints.

    `first_pass`: the batches that layers of other passes were folded from, where this is not the first. It must get
    the same: held-out samples are known by their numbers, and one store must not mix two data sets.
    """

    def __init__(
        self,
        folding: Folding,
        executor: ThreadPoolExecutor,
        *,
        checkpoints: Checkpoints | None = None,
        first_pass: Batches | None = None,
        backend: Backend | None = None,
        probed: Callable[[Probe], None] | None = None,
    ) -> None:
        """`backend` is what folds, numpy by default; rows have to come in the form that it takes.

        `probed` compares what the network gives for a probe, see `ProbedSink`.
        """
        self.probed = probed
        self._folding = folding
        self._executor = executor
        self._workspace = Workspace()
        self._checkpoints = checkpoints
        self._first_pass = first_pass
        self._pace = folding.pace()
        self._backend = backend or Backend()
        self._folds: dict[str, _LayerFold] = {}
        self._rows: dict[str, RowsRecord] = {}
        self._shared: Mapping[str, str] | None = None  # the first batch shows it
        self._samples = 0
        self._passed = 0
        self._slot = 0
        self.batches = BatchLog()
        """Every batch folded so far, also in the runs before this one."""
        self.ended = False
        """Whether an earlier run folded all batches and wrote the moments."""
        self._resume()
        self._require_first_pass(self.batches.batches, whole=self.ended)

    @property
    def held(self) -> Sequence[int]:
        """Samples of each batch folded before."""
        counts: list[int] = self.batches.batches.samples.tolist()
        return counts

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Compare a batch to the one folded before under its number; True where it need not be run again."""
        if self._first_pass:
            self._require_first_pass(Batches.of([BatchRecord(samples, digest)]), after=batch)
        if batch >= len(self.batches):
            return False
        known = self.batches[batch]
        if (known.samples, known.digest) != (samples, digest):
            raise FingerprintMismatchError(
                f"batch {batch} is not the one folded before the run was stopped ({known.samples} samples, digest "
                f"{known.digest[:12]}; now {samples}, {digest[:12]}): restore the data, their order, augmentation and "
                "batch size, or delete the store's folder 'unfinished' to start over"
            )
        self._passed = batch + 1
        return True

    def write(self, batch: RowBatch) -> None:
        """Fold every tile that the batch fills."""
        if batch.samples:
            self._shared = shared_rows(batch, self._shared)
            for name in (name for name in batch.rows if name not in self._shared):
                rows = batch.rows[name]
                with named(name):
                    self._fold(name, batch).push(rows, batch.sample_numbers(name, self._samples))
                known = self._rows[name]
                self._rows[name] = dataclasses.replace(known, rows=known.rows + rows.shape[0])
        self.batches.append(BatchRecord(batch.samples, batch.digest))
        self._samples += batch.samples
        self._passed += 1
        if self._checkpoints is not None and self._pace.due():
            begun = self._pace.clock()
            self._keep()
            self._pace.paid(begun)

    def finish(self) -> None:
        """Fold the last, shorter tiles."""
        self._require_first_pass(Batches(), after=self._passed, whole=True)
        if self._passed < len(self.batches):
            raise FingerprintMismatchError(
                f"{len(self.batches)} batches were folded before the run was stopped, and now the loader ended after "
                f"{self._passed}: restore the data, or delete the store's folder 'unfinished' to start over"
            )
        for name, fold in self._folds.items():
            with named(name):
                fold.flush()

    def freeze(self) -> Iterator[tuple[str, SplitMoments]]:
        """Yield each layer's moments and give up its accumulators."""
        while self._folds:
            name = next(iter(self._folds))
            with named(name):
                split = self._folds.pop(name).freeze()
            yield name, split

    def record(self) -> DomainRecord:
        """Return what is known of the rows that were folded: all but the rows."""
        shared = self._shared or {}
        return DomainRecord(complete=True, batches=self.batches.batches, layers=dict(self._rows), shared=shared)

    def keep_end(self) -> None:
        """Record that this pass is complete and its moments are in the store."""
        if self._checkpoints is not None:
            self._checkpoints.save(INDEX, SavedFold(values={"ended": True, **self._progress()}))

    def _require_first_pass(self, batches: Batches, *, after: int = 0, whole: bool = False) -> None:
        """Compare batches from number `after` on with those of the first pass; `whole`: none may be left over."""
        if not self._first_pass:
            return
        stop = len(self._first_pass) if whole else after + len(batches)
        if self._first_pass[after:stop] != batches:
            raise FingerprintMismatchError(
                "the layers are folded in several passes, and one of them has other batches than the first (from batch "
                f"{after} on): turn off shuffling and random augmentation, or raise the memory limit so that one pass "
                "is enough; where the data changed since the run was stopped, restore them, or delete the store's "
                "folder 'unfinished' to start over"
            )

    def _fold(self, name: str, batch: RowBatch) -> _LayerFold:
        rows, known = batch.rows[name], self._rows.get(name)
        per_sample = rows_per_sample(name, batch, None if known is None else known.rows_per_sample)
        if known is None:
            self._rows[name] = RowsRecord(rows.shape[1], self._backend.to_host(rows[:0]).dtype.name, per_sample)
            self._folds[name] = self._new(self._folding.rule(rows.shape[1]), SavedFold())
        return self._folds[name]

    def _new(self, rule: FoldRule, saved: SavedFold) -> _LayerFold:
        owners = [partition for partition in rule.partitions for _ in range(rule.lanes)]
        states = list(saved.lanes) or [LaneState.empty(rule) for _ in owners]
        new_fold = self._backend.new_fold
        lanes = [
            LaneFold(
                rule, self._executor, state=state, workspace=self._workspace, new_fold=new_fold, partition=partition
            )
            for partition, state in zip(owners, states, strict=True)
        ]
        return _LayerFold(rule, lanes, saved, self._backend)

    def _keep(self) -> None:
        assert self._checkpoints is not None  # noqa: S101  # for the type checker: the caller has looked
        self._slot = 1 - self._slot
        for name, fold in self._folds.items():
            self._checkpoints.save(f"{name}-{self._slot}", fold.saved(len(self.batches)))
        self._checkpoints.save(INDEX, SavedFold(values={"ended": False, **self._progress()}))

    def _progress(self) -> dict[str, Any]:
        return {
            "slot": self._slot,
            "batches": self.batches.batches.plain(),
            "rows": {name: plain_fields(rows) for name, rows in self._rows.items()},
            "shared": None if self._shared is None else dict(self._shared),
        }

    def _resume(self) -> None:
        index = self._checkpoints.load(INDEX) if self._checkpoints else None
        if self._checkpoints is None or index is None:
            return
        batches = BatchLog(Batches.of_plain(index.values["batches"]))
        rows = {name: RowsRecord(**{**known, "tile_digests": ()}) for name, known in index.values["rows"].items()}
        self.ended, slot = index.values["ended"], index.values["slot"]
        folds = {}
        for name, known in rows.items() if not self.ended else ():
            saved = self._checkpoints.load(f"{name}-{slot}")
            if saved is None or saved.values["batches"] != len(batches):
                return  # damaged: start over
            folds[name] = self._new(self._folding.rule(known.features), saved)
        self._folds, self._rows, self._slot, self.batches = folds, rows, slot, batches
        self._shared = index.values["shared"]
        self._samples = int(batches.batches.samples.sum())


@contextmanager
def named(layer: str) -> Iterator[None]:
    """Name the layer whose sums overflowed."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"layer '{layer}': {error}") from None


class _LayerFold:
    def __init__(self, rule: FoldRule, lanes: list[LaneFold], saved: SavedFold, backend: Backend) -> None:
        """`lanes`: those of each partition, one partition after the other."""
        self.rule = rule
        self._lanes = lanes
        self._backend = backend
        first, before = saved.values.get("next_tile", 0), saved.values.get("sample_before", -1)
        self._tiler = Tiler(rule.tile_rows, first_tile=first, sample_before=before, join=backend.join)
        if saved.pending:
            self.push(saved.pending["pending"], saved.pending["pending_sample"])

    def push(self, rows: Rows, samples: Samples) -> None:
        for tile in self._tiler.push(rows, samples):
            self._update(tile)

    def flush(self) -> None:
        for tile in self._tiler.flush():
            self._update(tile)

    def saved(self, batches: int) -> SavedFold:
        """Return all that a later run needs to go on."""
        values: dict[str, Any] = {
            "batches": batches,
            "next_tile": self._tiler.next_tile,
            "sample_before": self._tiler.sample_before,
        }
        held = self._tiler.pending()
        pending = {} if held is None else {"pending": self._backend.to_host(held[0]), "pending_sample": held[1]}
        return SavedFold([lane.state() for lane in self._lanes], values, pending)

    def freeze(self) -> SplitMoments:
        lanes, self._lanes = self._lanes, []
        partitions = [merge_all(lanes.pop(0).freeze() for _ in range(self.rule.lanes)) for _ in self.rule.partitions]
        return join_partitions(self.rule, partitions)

    def _update(self, tile: Tile) -> None:
        with one_blas_thread():
            for lane in self._lanes[tile.number % self.rule.lanes :: self.rule.lanes]:
                lane.update(tile)
