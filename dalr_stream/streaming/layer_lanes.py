"""The lanes of a layer whose rows are folded as they come, and the tile that is being filled."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dalr_stream.errors import NonFiniteError
from dalr_stream.numerics.linalg.rank_k import one_blas_thread
from dalr_stream.numerics.rows.tiling import Rows, Samples, Tile, Tiler
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.numerics.statistics.folding import LaneFold, LaneState, SplitMoments, Workspace, join_partitions
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.checkpoints import SavedFold


@contextmanager
def named(layer: str) -> Iterator[None]:
    """Name the layer whose sums overflowed."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"layer '{layer}': {error}") from None


@dataclass(frozen=True, slots=True)
class NewLanes:
    """Makes the lanes of layers, which share one workspace."""

    backend: Backend
    executor: Executor
    workspace: Workspace = field(default_factory=Workspace)

    def of(self, rule: FoldRule, saved: SavedFold | None = None) -> LayerLanes:
        """Return the lanes of a layer that is folded by `rule`, as an earlier run saved them."""
        owners = [partition for partition in rule.partitions for _ in range(rule.lanes)]
        saved = saved or SavedFold([LaneState.empty(rule) for _ in owners])
        lanes = [
            LaneFold(
                rule,
                self.executor,
                state=state,
                workspace=self.workspace,
                new_fold=self.backend.new_fold,
                partition=partition,
            )
            for partition, state in zip(owners, saved.lanes, strict=True)
        ]
        return LayerLanes(rule, lanes, saved, self.backend)


class LayerLanes:
    """The lanes of one layer, and the tile that is being filled for one of them."""

    def __init__(self, rule: FoldRule, lanes: list[LaneFold], saved: SavedFold, backend: Backend) -> None:
        """`lanes`: those of each partition, one partition after the other."""
        self.rule = rule
        self._lanes = lanes
        self._backend = backend
        first, before = saved.values.get("next_tile", 0), saved.values.get("sample_before", -1)
        self._tiler = Tiler(
            rule.tile_rows, first_tile=first, sample_before=before, join=backend.join, stack=backend.stack
        )
        if saved.pending:
            self.push(saved.pending["pending"], saved.pending["pending_sample"])

    def push(self, rows: Rows, samples: Samples) -> None:
        """Fold every tile that these rows fill."""
        for tile in self._tiler.push(rows, samples):
            self._update(tile)

    def flush(self) -> None:
        """Fold the last, shorter tile."""
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
        return SavedFold(self.states(), values, pending)

    def states(self) -> tuple[LaneState, ...]:
        """Return what each lane has summed up, those of one partition after the other's."""
        return tuple(lane.state() for lane in self._lanes)

    def freeze(self) -> SplitMoments:
        """Join the lanes and give them up."""
        lanes, self._lanes = self._lanes, []
        sums = (merge_all(lanes.pop(0).state() for _ in range(self.rule.lanes)) for _ in self.rule.partitions)
        return join_partitions(self.rule, [lane.moments() for lane in sums])

    def _update(self, tile: Tile) -> None:
        with one_blas_thread():
            for lane in self._lanes[tile.number % self.rule.lanes :: self.rule.lanes]:
                lane.update(tile)
