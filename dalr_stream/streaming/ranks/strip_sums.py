"""What one rank holds where ranks share the sums of a layer: strips of its matrices, from the rows of all batches.

A layer is folded by its rule, by lanes or by segments, as one process folds it, but for the rows of each matrix that
other ranks have. Strips are told apart by their place among this rank's own of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dalr_stream.numerics.rows.tiling import Rows, Samples
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip
from dalr_stream.numerics.statistics.folding import FoldState, LaneState
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.segments import LayerSums, SegmentSum, SegmentTree
from dalr_stream.numerics.statistics.strip_shares import Piece, share_out
from dalr_stream.storage.checkpoints import SavedFold
from dalr_stream.storage.records.moments import shard_parts
from dalr_stream.storage.schema import HELDOUT, TRAINING
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.layer_lanes import LayerLanes, NewLanes, named

Held = list[list[LaneState]]
"""Of each strip of a layer, in their order, the sums of the tree and then the lanes that are being folded."""


class StripSums:
    """The sums of this rank's strips."""

    def __init__(self, folding: Folding, lanes: NewLanes, rank: int, ranks: int) -> None:
        self.folding = folding
        """How rows become moments."""
        self._new_lanes = lanes
        self._rank, self._ranks = rank, ranks
        self._features: dict[str, int] = {}
        self._folds: dict[str, LayerLanes] = {}
        self._tree = SegmentTree()
        self._totals: dict[str, tuple[LaneState, ...]] = {}
        self.pieces: dict[str, tuple[Piece, ...]] = {}
        """Of each layer's matrices, ascending, whosever they are."""

    def deal(self, features: Mapping[str, int]) -> None:
        """Share out the matrices of layers that were not seen before; every rank does, with the same outcome."""
        new = {name: width for name, width in features.items() if name not in self._features}
        self._features |= new
        self.pieces |= share_out(new, self._ranks, by_lanes=not self.folding.segment_batches)

    def rule(self, name: str) -> FoldRule:
        """Return the rule by which a layer is folded."""
        return self.folding.rule(self._features[name])

    def own(self, name: str) -> list[Strip]:
        """Return this rank's strips of a layer."""
        return [piece.strip for piece in self.pieces[name] if piece.rank == self._rank]

    # --- folding -------------------------------------------------------------------------------------------------

    def push(self, name: str, rows: Rows, samples: Samples) -> None:
        """Fold every tile that these rows fill."""
        if name not in self._folds:
            self._folds[name] = self._new_lanes.of(self.rule(name), strips=self.own(name))
        with named(name):
            self._folds[name].push(rows, samples)

    def close(self, segment: int) -> None:
        """Fold the last tile of a segment and add the segment to the tree."""
        layers: LayerSums = {}
        while self._folds:
            name = next(iter(self._folds))
            with named(name):
                self._folds[name].flush()
            layers[name] = self._folds.pop(name).states()
        self._tree.push(SegmentSum(segment, 1, layers))

    def end(self, name: str) -> None:
        """Add up all that was folded of a layer."""
        if self.folding.segment_batches:
            self._totals[name] = self._tree.total(name)
        elif name in self._folds:
            with named(name):
                self._folds[name].flush()
            self._totals[name] = self._folds.pop(name).totals()

    # --- what comes of it ----------------------------------------------------------------------------------------

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the records that a layer leaves, `training` last."""
        return (*shard_parts(self.rule(name).shards), HELDOUT, TRAINING)

    def total(self, name: str, place: int, part: str) -> FoldState:
        """Return one strip of one record of a layer that has ended."""
        rule, strip = self.rule(name), self.own(name)[place]
        each = len(rule.partitions)
        states = self._totals.get(name, ())[place * each : (place + 1) * each]
        if not states or (part == HELDOUT and not rule.holdout.share):
            return FoldState.empty(strip)
        if part == TRAINING:
            return merge_all(state.training for state in states[: rule.shards])
        if rule.shards == 1:
            return states[0].heldout or FoldState.empty(strip)
        return states[self.parts(name).index(part)].training

    def drop(self, name: str) -> None:
        """Give up the sums of a layer."""
        self._totals.pop(name, None)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def segments(self) -> list[list[int]]:
        """First segment and number of segments of each sum in the tree."""
        return [[one.first, one.size] for one in self._tree]

    def head(self, name: str, batches: int) -> SavedFold:
        """Return what a checkpoint of a layer has beside its sums."""
        fold, there = self._folds.get(name), [one.first for one in self._tree if name in one.layers]
        saved = SavedFold() if fold is None else fold.head()
        return SavedFold((), {"batches": batches, "sums": there, **saved.values}, saved.pending)

    def held(self, name: str) -> Iterator[list[LaneState]]:
        """Yield what is summed up of each of this rank's strips: in the tree, then what is being folded."""
        rule, fold = self.rule(name), self._folds.get(name)
        each, folding = len(rule.partitions), () if fold is None else fold.states()
        for place, _ in enumerate(self.own(name)):
            sums = [one.layers[name] for one in self._tree if name in one.layers]
            lanes = slice(place * each * rule.lanes, (place + 1) * each * rule.lanes)
            yield [*(lane for one in sums for lane in one[place * each : (place + 1) * each]), *folding[lanes]]

    def restore(
        self, segments: Sequence[Sequence[int]], heads: Mapping[str, SavedFold], held: Mapping[str, Held]
    ) -> None:
        """Go on from a checkpoint, of whose layers `held` has what `held` yields."""
        layers: dict[int, LayerSums] = {first: {} for first, _ in segments}
        for name, head in heads.items():
            each, there = len(self.rule(name).partitions), head.values["sums"]
            for number, first in enumerate(there):
                own = slice(number * each, (number + 1) * each)
                layers[first][name] = tuple(lane for strip in held[name] for lane in strip[own])
            if "next_tile" in head.values:
                lanes = [lane for strip in held[name] for lane in strip[len(there) * each :]]
                saved = SavedFold(lanes, head.values, head.pending)
                self._folds[name] = self._new_lanes.of(self.rule(name), saved, self.own(name))
        self._tree = SegmentTree(SegmentSum(first, size, layers[first]) for first, size in segments)
