"""Network and data to moments in one pass, with no activations kept.

The rows take the same tiles and lanes as on the way through a store, so the moments are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.network.capture import capture_rows
from dalr_stream.network.layers import LayerSpec
from dalr_stream.numerics.folding import (
    FoldRule,
    HoldoutRule,
    LaneFold,
    RowBatch,
    Rows,
    SplitMoments,
    Tiler,
    merge_all,
    rows_per_sample,
)
from dalr_stream.numerics.moments import Moments
from dalr_stream.numerics.rank_k import one_blas_thread
from dalr_stream.storage.activations import open_writer
from dalr_stream.storage.manifest import NetworkRecord, digest_of
from dalr_stream.streaming.accumulate import Threads
from dalr_stream.workflow.accumulate import LayerMoments, save_split
from dalr_stream.workflow.progress import Progress, Silent


def accumulate_stream(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    holdout: HoldoutRule | None = None,
    threads: Threads | None = None,
    progress: Progress | None = None,
) -> LayerMoments:
    """Return the moments of the inputs of `layers`, by layer, folding rows as the network makes them.

    Nothing is written, so nothing can be resumed: for runs of hours, capture to a store. Raises as `capture` does.
    Memory: every layer's lanes at once, see `streaming.plan`.
    """
    threads = threads or Threads()
    progress = progress or Silent()
    with ThreadPoolExecutor(threads.workers) as executor:
        sink = FoldSink(holdout or HoldoutRule(), executor)
        total = len(batches) if isinstance(batches, Sized) else None
        with progress.track("capture and fold", total, "batches") as advance:
            capture_rows(model, batches, layers, sink, batch_done=lambda _samples, _spared: advance(1))
        split = sink.freeze()
    return LayerMoments.of(split)


def keep_moments(
    store: str | Path, domain: str, network: NetworkRecord, moments: LayerMoments, holdout: HoldoutRule
) -> None:
    """Write moments from `accumulate_stream` into a store that keeps no activations of this domain."""
    root = Path(store)
    with open_writer(root, domain, network):
        for layer, training in moments.items():
            apart = moments.heldout.get(layer, Moments.empty(training.features))
            rows = digest_of([training.count, training.mean.tolist(), training.variance.tolist()])
            facts = {"network": network.fingerprint, "rows": f"direct:{rows}", "rule": {"holdout": asdict(holdout)}}
            save_split(root, domain, layer, SplitMoments(training, apart), facts)


class FoldSink:
    """A RowSink that folds rows at once and keeps only sums."""

    def __init__(self, holdout: HoldoutRule, executor: ThreadPoolExecutor) -> None:
        self._holdout = holdout
        self._executor = executor
        self._folds: dict[str, _LayerFold] = {}

    def skip(self, batch: int, samples: int, digest: str) -> bool:  # noqa: ARG002  # protocol
        """Skip nothing: a fold holds no batch that could be compared."""
        return False

    def write(self, batch: RowBatch) -> None:
        """Fold every tile that the batch fills."""
        if batch.samples == 0:
            return
        for name, rows in batch.rows.items():
            fold = self._folds.get(name)
            per_sample = rows_per_sample(name, batch, None if fold is None else fold.rule.rows_per_sample)
            if fold is None:
                rule = FoldRule(rows.shape[1], per_sample, self._holdout)
                fold = self._folds[name] = _LayerFold(rule, self._executor)
            fold.push(rows)

    def finish(self) -> None:
        """Fold the last, shorter tiles."""
        for fold in self._folds.values():
            fold.flush()

    def freeze(self) -> dict[str, SplitMoments]:
        """Return the moments by layer and give up the accumulators."""
        return {name: fold.freeze() for name, fold in self._folds.items()}


class _LayerFold:
    def __init__(self, rule: FoldRule, executor: ThreadPoolExecutor) -> None:
        self.rule = rule
        self._tiler = Tiler(rule.tile_rows)
        self._lanes = [LaneFold(rule, executor) for _ in range(rule.lanes)]

    def push(self, rows: Rows) -> None:
        for tile, block in self._tiler.push(rows):
            self._fold(tile, block)

    def flush(self) -> None:
        for tile, block in self._tiler.flush():
            self._fold(tile, block)

    def freeze(self) -> SplitMoments:
        return merge_all([lane.freeze() for lane in self._lanes])

    def _fold(self, tile: int, block: Rows) -> None:
        with one_blas_thread():
            self._lanes[tile % self.rule.lanes].update(tile, block)
