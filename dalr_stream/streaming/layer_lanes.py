"""The lanes of a layer whose rows are folded as they come, and the tile that is being filled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.linalg.rank_k import one_blas_thread
from dalr_stream.numerics.rows.tiling import Rows, Samples, Tile, Tiler
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip
from dalr_stream.numerics.statistics.folding import LaneFold, LaneState, SplitMoments, Workspace, join_partitions
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.checkpoints import SavedFold


@contextmanager
def named(layer: str) -> Iterator[None]:
    """Name the layer whose sums overflowed, or whose rows are of another width."""
    try:
        yield
    except (NonFiniteError, InvalidInputError) as error:
        raise type(error)(f"layer '{layer}': {error}") from None


@dataclass(frozen=True, slots=True)
class NewLanes:
    """Makes the lanes of layers, which share one workspace."""

    backend: Backend
    executor: Executor
    workspace: Workspace = field(default_factory=Workspace)

    def of(
        self, rule: FoldRule, saved: SavedFold | None = None, strips: Sequence[Strip | None] = (None,)
    ) -> LayerLanes:
        """Return the lanes of a layer that is folded by `rule`, as an earlier run saved them.

        `strips` are those of its matrix that are folded: the whole, where none are named.
        """
        owners = [partition for _ in strips for partition in rule.partitions for _ in range(rule.lanes)]
        each = len(rule.partitions) * rule.lanes
        saved = saved or SavedFold([LaneState.empty(rule, strip) for strip in strips for _ in range(each)])
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
        """`lanes`: those of each partition, one partition after the other, and so for each strip."""
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
        """Fold every tile that these rows fill; raises InvalidInputError for rows of another width."""
        if rows.shape[1] != self.rule.features:
            raise InvalidInputError(
                f"its rows have {rows.shape[1]} features in this batch, and {self.rule.features} in those before: "
                "give all batches the same form"
            )
        for tile in self._tiler.push(rows, samples):
            self._update(tile)

    def flush(self) -> None:
        """Fold the last, shorter tile."""
        for tile in self._tiler.flush():
            self._update(tile)

    def saved(self, batches: int) -> SavedFold:
        """Return all that a later run needs to go on."""
        head = self.head()
        return SavedFold(self.states(), {"batches": batches, **head.values}, head.pending)

    def head(self) -> SavedFold:
        """Return what it needs beside the sums: where the next tile begins, and the rows that it has so far."""
        values = {"next_tile": self._tiler.next_tile, "sample_before": self._tiler.sample_before}
        held = self._tiler.pending()
        pending = {} if held is None else {"pending": self._backend.to_host(held[0]), "pending_sample": held[1]}
        return SavedFold((), values, pending)

    def states(self) -> tuple[LaneState, ...]:
        """Return what each lane has summed up, those of one partition after the other's, strip after strip."""
        return tuple(lane.state() for lane in self._lanes)

    def totals(self) -> tuple[LaneState, ...]:
        """Join the lanes of each partition, strip after strip, and give them up."""
        lanes, self._lanes = self._lanes, []
        sums = range(len(lanes) // self.rule.lanes)
        return tuple(merge_all(lanes.pop(0).state() for _ in range(self.rule.lanes)) for _ in sums)

    def freeze(self) -> SplitMoments:
        """Join the lanes of whole matrices and give them up."""
        return join_partitions(self.rule, [state.moments() for state in self.totals()])

    def _update(self, tile: Tile) -> None:
        with one_blas_thread():
            for lane in self._lanes[tile.number % self.rule.lanes :: self.rule.lanes]:
                lane.update(tile)
