"""Folds segments of the batches as they come, on any number of ranks, to the bits of one process.

Segments are dealt in rounds: each rank folds w of them, those that follow the one's before, and passes by those of the
others. It sees their batches, or knows how many samples they have, so that sample numbers and the held-out share agree
without a word; digests of batches that it did not load come with the sums. At the end of a round the sums of all ranks
are joined in the fixed tree (`statistics.segments`), two by two on the way to rank 0 (`link`), which writes the
checkpoint. Then nobody else holds anything, so any number of ranks can resume from there. The width w decides no bit;
it is doubled as long as sending and joining take more than their share of the time.

One process is rank 0 of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.share import Share
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.folding import LaneState, SplitMoments, join_partitions
from dalr_stream.numerics.statistics.segments import LayerSums, SegmentSum, SegmentTree
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.checkpoints import Checkpoints, SavedFold
from dalr_stream.streaming.fold_sink import INDEX
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.lanes import SHARE_FOR_CHECKPOINTS
from dalr_stream.streaming.layer_lanes import LayerLanes, NewLanes, named
from dalr_stream.streaming.pass_log import Logged, PassLog
from dalr_stream.streaming.ranks.link import Alone, Link, Message, rank_above, ranks_below, tell
from dalr_stream.streaming.ranks.sums_message import arrays_of, facts_of, sums_from


class SegmentSink(Logged):
    """A RowSink that folds segments, see above; takes what `FoldSink` takes, and the link to the other ranks.

    Only rank 0 is given checkpoints, and only there are `freeze` and `record` of all rows.
    """

    def __init__(  # noqa: PLR0913  # those of FoldSink, and who else folds
        self,
        folding: Folding,
        executor: ThreadPoolExecutor,
        *,
        link: Link | None = None,
        length: int | None = None,
        checkpoints: Checkpoints | None = None,
        first_pass: Batches | None = None,
        backend: Backend | None = None,
        probed: Callable[[Probe], None] | None = None,
    ) -> None:
        """`length` is how many batches there are, where that is known: then the last round is dealt evenly."""
        self.probed = probed
        self._length = length
        backend = backend or Backend()
        self._folding = folding
        self._link: Link = link or Alone()
        self._checkpoints = checkpoints
        self._pace = folding.pace()
        self._lanes = NewLanes(backend, executor)
        self._log = PassLog(first_pass, backend.to_host)
        self._folds: dict[str, LayerLanes] = {}
        self._tree = SegmentTree()
        self._wanted = self._width = 1
        self._slot = 0
        self.ended = False
        """Whether an earlier run folded all batches and wrote the moments."""
        self._resume()
        self._round_begins = self._origin = len(self._log) // folding.segment_batches
        self._joined_at = self._pace.clock()

    @property
    def share_from(self) -> Callable[[int], Share] | None:
        """What this rank loads of the batches from a number on, to the end of the round; None where it is alone."""
        return self._share if self._link.ranks > 1 else None

    def _share(self, first: int) -> Share:
        """Of its own segments all batches, and the first one of the round, which every rank compares."""
        each = self._folding.segment_batches
        stop = (self._origin + self._width * self._link.ranks) * each
        own = [batch for batch in range(first, stop) if self._owner(batch // each) == self._link.rank]
        begin = self._round_begins * each
        return Share(stop, own if self._link.rank == 0 or begin < first else [begin, *own])

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Tell whether this rank need not run a batch: it was folded before, which is checked, or is another's."""
        if self._log.skip(batch, samples, digest):
            return True
        if self._owner(batch // self._folding.segment_batches) == self._link.rank:
            return False
        self._pass(samples, digest)
        return True

    def write(self, batch: RowBatch) -> None:
        """Fold every tile that the batch fills."""
        for name, rows in self._log.own_rows(batch):
            if name not in self._folds:
                self._folds[name] = self._lanes.of(self._folding.rule(rows.shape[1]))
            with named(name):
                self._folds[name].push(rows, batch.sample_numbers(name, self._log.samples))
        self._pass(batch.samples, batch.digest)

    def finish(self) -> None:
        """Fold the last segment, which may be shorter, and join what all ranks folded."""
        self._log.require_whole()
        full, left = divmod(len(self._log), self._folding.segment_batches)
        if left:
            self._close(full)
        self._join(ended=True)

    def freeze(self) -> Iterator[tuple[str, SplitMoments]]:
        """Yield each layer's moments and give up its sums."""
        for name, rows in self._log.rows.items():
            rule = self._folding.rule(rows.features)
            states = self._tree.total(name) or tuple(LaneState.empty(rule) for _ in rule.partitions)
            with named(name):
                split = join_partitions(rule, [state.moments() for state in states])
            yield name, split

    def keep_end(self) -> None:
        """Record that this pass is complete and its moments are in the store."""
        if self._checkpoints is not None:
            self._checkpoints.save(INDEX, SavedFold(values=self._progress(ended=True)))

    def _owner(self, segment: int) -> int:
        return (segment - self._origin) // self._width

    def _pass(self, samples: int, digest: str) -> None:
        """Take note of a batch, and close the segment or the round where it was the last one."""
        self._link.check()
        self._log.append(samples, digest)
        segment, left = divmod(len(self._log), self._folding.segment_batches)
        if left == 0:
            self._close(segment - 1)
            if self._owner(segment) == self._link.ranks:
                self._join(ended=False)

    def _close(self, segment: int) -> None:
        """Add a segment of this rank's to its sums."""
        if self._owner(segment) != self._link.rank:
            return
        layers: LayerSums = {}
        while self._folds:
            name = next(iter(self._folds))
            with named(name):
                self._folds[name].flush()
            layers[name] = self._folds.pop(name).states()
        self._tree.push(SegmentSum(segment, 1, layers))

    # --- at the end of a round -----------------------------------------------------------------------------------

    def _join(self, *, ended: bool) -> None:
        """Bring the sums of a round together on rank 0."""
        first, self._round_begins = self._round_begins, len(self._log) // self._folding.segment_batches
        worked = self._pace.clock() - self._joined_at
        parts, seconds = self._gather()
        if self._link.rank:
            self._send(first, parts, seconds, ended=ended)
            return
        for part in parts:
            self._note(part, first, ended=ended)
        if seconds > SHARE_FOR_CHECKPOINTS * worked:
            self._wanted *= 2
        self._deal()
        tell(self._link, {"width": self._width, "origin": self._origin})
        if self._checkpoints is not None and not ended and self._pace.due():
            begun = self._pace.clock()
            self._keep(self._checkpoints)
            self._pace.paid(begun)
        self._joined_at = self._pace.clock()

    def _deal(self) -> None:
        """Deal the next round, so that what a rank adds up has one place in the tree: from a multiple of the width on.

        Rank 0 may have less then. Where the length is known, a last round leaves no rank idle.
        """
        begin, self._width = self._round_begins, self._wanted
        self._origin = begin // self._width * self._width
        if self._length is not None:
            left = -(-self._length // self._folding.segment_batches) - begin
            each = max(-(-left // self._link.ranks), 1)
            if each < self._width:
                self._width, self._origin = each, begin

    def _gather(self) -> tuple[list[Mapping[str, Any]], float]:
        """Take the sums of the ranks below; return what each rank there says, and the seconds that it took in all."""
        parts: list[Mapping[str, Any]] = []
        seconds, below = 0.0, 0.0
        for rank in ranks_below(self._link.rank, self._link.ranks):
            message = self._link.receive(rank)
            begun = self._pace.clock()
            for one in sums_from(message.facts["sums"], iter(message.arrays)):
                self._tree.push(one)
            parts.extend(message.facts["parts"])
            seconds += self._pace.clock() - begun
            below = max(below, message.facts["seconds"])
        return parts, seconds + below

    def _send(self, first: int, parts: Sequence[Mapping[str, Any]], seconds: float, *, ended: bool) -> None:
        """Send what this rank and those below it folded since segment `first`, and hold nothing of it."""
        log, sums = self._log, self._tree.take()
        own = {"rank": self._link.rank, "ended": ended, **log.plain(first * self._folding.segment_batches)}
        facts = {"parts": [own, *parts], "seconds": seconds, "sums": facts_of(sums)}
        self._link.send(rank_above(self._link.rank), Message(facts, arrays_of(sums)))
        log.rows = {name: replace(known, rows=0) for name, known in log.rows.items()}
        dealt = self._link.receive(0).facts
        self._width, self._origin = dealt["width"], dealt["origin"]

    def _note(self, part: Mapping[str, Any], first: int, *, ended: bool) -> None:
        """Take note of what a rank says of its round."""
        rank, batches = part["rank"], Batches.of_plain(part["batches"])
        self._require_same_batches(rank, first, batches, ended=part["ended"] == ended)
        self._log.add_rows(rank, part)

    def _require_same_batches(self, rank: int, first: int, theirs: Batches, *, ended: bool) -> None:
        """Raise FingerprintMismatchError where a rank's loader gave it other batches than this one's."""
        begin = first * self._folding.segment_batches
        ours = self.batches.batches[begin:]
        number = ours.differ(theirs)
        if ended and number is None:
            self._log.complete(begin, theirs)
            return
        both = min(len(ours), len(theirs))
        number = both if number is None else number
        what = "is not the same for" if number < both else "is there for one only of"
        raise FingerprintMismatchError(
            f"ranks: batch {begin + number} {what} rank {rank} and rank 0: the loader of each rank must give all "
            "batches, the same in the same order, of which it runs its own: take no sampler that deals samples to "
            "ranks, and turn off shuffling and random augmentation"
        )

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def _keep(self, checkpoints: Checkpoints) -> None:
        self._slot = 1 - self._slot
        for name in self._log.rows:
            lanes = [lane for one in self._tree for lane in one.layers.get(name, ())]
            there = [one.first for one in self._tree if name in one.layers]
            checkpoints.save(f"{name}-{self._slot}", SavedFold(lanes, {"batches": len(self._log), "sums": there}))
        checkpoints.save(INDEX, SavedFold(values=self._progress(ended=False)))

    def _progress(self, *, ended: bool) -> dict[str, Any]:
        sums = [[one.first, one.size] for one in self._tree]
        return {"ended": ended, "slot": self._slot, "sums": sums, **self._log.plain()}

    def _resume(self) -> None:
        """Go on from the checkpoint that rank 0 finds, on every rank."""
        index = None if self._link.rank else self._load()
        told = tell(self._link, {} if index is None else index)
        if not told:
            return
        self.ended = told["ended"]
        self._log.resume(told, ended=self.ended)
        if self._link.rank:
            self._log.rows = {name: replace(known, rows=0) for name, known in self._log.rows.items()}

    def _load(self) -> Mapping[str, Any] | None:
        """Take the sums of the last checkpoint and return its index; None where there is none that is whole."""
        index = self._checkpoints.load(INDEX) if self._checkpoints else None
        if self._checkpoints is None or index is None or index.values["ended"]:
            return None if index is None else index.values
        values = index.values
        layers: dict[int, LayerSums] = {first: {} for first, _ in values["sums"]}
        batches = Batches.of_plain(values["batches"])
        for name in values["rows"]:
            saved = self._checkpoints.load(f"{name}-{values['slot']}")
            if saved is None or saved.values["batches"] != len(batches):
                return None  # damaged: start over
            each = len(saved.lanes) // max(len(saved.values["sums"]), 1)
            for number, first in enumerate(saved.values["sums"]):
                layers[first][name] = tuple(saved.lanes[number * each : (number + 1) * each])
        self._tree = SegmentTree(SegmentSum(first, size, layers[first]) for first, size in values["sums"])
        self._slot = values["slot"]
        return values
