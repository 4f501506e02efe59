"""Folds rows as they come and keeps only sums; given a store, also checkpoints.

A checkpoint is every lane of every layer at the same batch, with the rows that fill no tile yet. It is written into the
one of two slots that the index does not name, and then the index is replaced: killed in between, the old one holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.checkpoints import Checkpoints, SavedFold
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.layer_lanes import LayerLanes, NewLanes, named
from dalr_stream.streaming.pass_log import Logged, PassLog

INDEX = "index"


class FoldSink(Logged):
    """A RowSink that folds; `checkpoints` is where it finds and leaves checkpoints.

    `first_pass`: the batches that layers of other passes were folded from, where this is not the first; see `PassLog`.
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
        compares: bool = True,
    ) -> None:
        """`backend` is what folds, numpy by default; rows have to come in the form that it takes.

        `probed` compares what the network gives for a probe, see `ProbedSink`. `compares` is as in `ComparingSink`.
        """
        self.compares = compares
        self.probed = probed
        self._folding = folding
        self._checkpoints = checkpoints
        self._pace = folding.pace()
        backend = backend or Backend()
        self._lanes = NewLanes(backend, executor)
        self._folds: dict[str, LayerLanes] = {}
        self._slot = 0
        self._log = PassLog(first_pass, backend.to_host)
        self.ended = False
        """Whether an earlier run folded all batches and wrote the moments."""
        self._resume()

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Compare a batch to the one folded before under its number; True where it need not be run again."""
        return self._log.skip(batch, samples, digest)

    def write(self, batch: RowBatch) -> None:
        """Fold every tile that the batch fills."""
        for name, rows in self._log.own_rows(batch):
            if name not in self._folds:
                self._folds[name] = self._lanes.of(self._folding.rule(rows.shape[1]))
            with named(name):
                self._folds[name].push(rows, batch.sample_numbers(name, self._log.samples))
        self._log.append(batch.samples, batch.digest)
        if self._checkpoints is not None and self._pace.due():
            begun = self._pace.clock()
            self._keep()
            self._pace.paid(begun)

    def finish(self) -> None:
        """Fold the last, shorter tiles."""
        self._log.require_whole()
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

    def keep_end(self) -> None:
        """Record that this pass is complete and its moments are in the store."""
        if self._checkpoints is not None:
            self._checkpoints.save(INDEX, SavedFold(values=self._progress(ended=True)))

    def _keep(self) -> None:
        assert self._checkpoints is not None  # noqa: S101  # for the type checker: the caller has looked
        self._slot = 1 - self._slot
        for name, fold in self._folds.items():
            self._checkpoints.save(f"{name}-{self._slot}", fold.saved(len(self.batches)))
        self._checkpoints.save(INDEX, SavedFold(values=self._progress(ended=False)))

    def _progress(self, *, ended: bool) -> dict[str, Any]:
        return {"ended": ended, "slot": self._slot, **self._log.plain()}

    def _resume(self) -> None:
        index = self._checkpoints.load(INDEX) if self._checkpoints else None
        if self._checkpoints is None or index is None:
            return
        ended, slot = index.values["ended"], index.values["slot"]
        batches = Batches.of_plain(index.values["batches"])
        folds = {}
        for name, known in index.values["rows"].items() if not ended else ():
            saved = self._checkpoints.load(f"{name}-{slot}")
            if saved is None or saved.values["batches"] != len(batches):
                return  # damaged: start over
            folds[name] = self._lanes.of(self._folding.rule(known["features"]), saved)
        self._folds, self._slot, self.ended = folds, slot, ended
        self._log.resume(index.values, ended=ended)
