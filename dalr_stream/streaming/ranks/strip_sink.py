"""Folds rows on ranks that share the sums of a layer: for layers of which no rank can hold them all.

Batches are dealt to ranks by number, in rounds of one for each. When a round has been through the network, the rows of
its batches go to every rank (`row_exchange`), in their order, and each folds those rows of the moments that are its own
(`strip_sums`). So the bits are those of one process, by whichever rule it folds, and no rank holds a whole matrix: at a
checkpoint, and at the end, rank 0 receives a block of rows at a time and writes it.

What crosses the network are rows: n d of them in place of d^2 / 2 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.share import UNSEEN, Share
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.folding import FoldState, SplitMoments
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.records.moments import shard_parts
from dalr_stream.storage.schema import HELDOUT, TRAINING
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.layer_lanes import NewLanes, named
from dalr_stream.streaming.pass_log import Logged, PassLog
from dalr_stream.streaming.ranks.link import Alone, Link, Message, tell
from dalr_stream.streaming.ranks.row_exchange import RowExchange, other_loader, own_batches
from dalr_stream.streaming.ranks.strip_checkpoints import StripCheckpoints
from dalr_stream.streaming.ranks.strip_records import Panels, StripRecords, moments_of
from dalr_stream.streaming.ranks.strip_sums import StripSums


class StripSink(Logged):
    """A RowSink of one rank, see above; takes what `SegmentSink` takes.

    Only rank 0 is given checkpoints, and only there are `records`, `freeze` and `record` of all rows.
    """

    def __init__(
        self,
        folding: Folding,
        executor: ThreadPoolExecutor,
        *,
        link: Link | None = None,
        checkpoints: Checkpoints | None = None,
        first_pass: Batches | None = None,
        backend: Backend | None = None,
        probed: Callable[[Probe], None] | None = None,
    ) -> None:
        self.probed = probed
        backend = backend or Backend()
        self._folding = folding
        self._link: Link = link or Alone()
        self._pace = folding.pace()
        self._log = PassLog(first_pass, backend.to_host)
        self._sums = StripSums(folding, NewLanes(backend, executor), self._link.rank, self._link.ranks)
        self._exchange = RowExchange(self._link, backend.to_host, backend.stage)
        self._kept = StripCheckpoints(self._link, self._sums, self._log, checkpoints)
        self._records = StripRecords(self._link, self._sums)
        self._round: list[RowBatch] = []
        self.ended = self._kept.resume()
        """Whether an earlier run folded all batches and wrote the moments."""

    @property
    def share_from(self) -> Callable[[int], Share] | None:
        """What this rank loads of the batches from a number on; None where it is alone."""
        return partial(own_batches, link=self._link) if self._link.ranks > 1 else None

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Tell whether this rank need not run a batch: it was folded before, which is checked, or is another's."""
        self._link.check()
        if self._log.skip(batch, samples, digest):
            return True
        if self._exchange.owner(batch) == self._link.rank:
            return False
        self._take(RowBatch(samples, digest, {}))
        return True

    def write(self, batch: RowBatch) -> None:
        """Take the rows of a batch of this rank's."""
        self._take(batch)

    def finish(self) -> None:
        """Fold the last round, hear that all ranks came to the same end, and add up; all but rank 0 give up theirs."""
        self._end_round()
        self._require_same_end()
        self._log.require_whole()
        full, left = divmod(len(self._log), self._folding.segment_batches or 1)
        if left:
            self._sums.close(full)
        for name in self._log.rows:
            self._sums.end(name)
            if self._link.rank:
                self._records.send(name)

    def records(self, name: str) -> Iterator[tuple[str, FoldState, Panels]]:
        """Yield each record that a layer leaves, all but its matrix, and whole rows of that; give up its sums."""
        return self._records.taken(name)

    def freeze(self) -> Iterator[tuple[str, SplitMoments]]:
        """Yield each layer's moments, for which this process holds them whole."""
        for name in self._log.rows:
            with named(name):
                found = {part: moments_of(last, panels) for part, last, panels in self.records(name)}
            shards = tuple(found[part] for part in shard_parts(self._sums.rule(name).shards))
            yield name, SplitMoments(found[TRAINING], found[HELDOUT], shards)

    def keep_end(self) -> None:
        """Record that this pass is complete and its moments are in the store."""
        self._kept.keep_end()

    # --- a round -------------------------------------------------------------------------------------------------

    def _take(self, batch: RowBatch) -> None:
        self._round.append(batch)
        if (len(self._log) + len(self._round)) % self._link.ranks == 0:
            self._end_round()
            self._keep_where_due()

    def _end_round(self) -> None:
        """Fold the batches of a round, which all have been through the network of one rank or another."""
        while self._round:
            number, mine = len(self._log), self._round.pop(0)
            batch = self._exchange.shared(number, mine)
            if mine.digest == UNSEEN:
                self._log.skip(number, batch.samples, batch.digest)  # compares it with the first pass
            self._fold(batch)

    def _fold(self, batch: RowBatch) -> None:
        self._sums.deal({name: rows.shape[1] for name, rows in batch.rows.items() if name not in batch.shared})
        for name, rows in self._log.own_rows(batch):
            self._sums.push(name, rows, batch.sample_numbers(name, self._log.samples))
        self._log.append(batch.samples, batch.digest)
        each = self._folding.segment_batches
        if each and len(self._log) % each == 0:
            self._sums.close(len(self._log) // each - 1)

    def _keep_where_due(self) -> None:
        """Write a checkpoint where rank 0 says so."""
        if tell(self._link, {"keep": self._kept.kept and self._pace.due()})["keep"]:
            begun = self._pace.clock()
            self._kept.keep()
            self._pace.paid(begun)

    # --- the end -------------------------------------------------------------------------------------------------

    def _require_same_end(self) -> None:
        """Raise FingerprintMismatchError where the loader of one rank gave more batches than that of another."""
        end = {"ended": len(self._log)}
        if self._link.rank:
            self._link.send(0, Message(end))
        for rank in range(1, self._link.ranks) if self._link.rank == 0 else ():
            if self._link.receive(rank).facts != end:
                raise other_loader(rank, len(self._log))
        if tell(self._link, end) != end:
            raise other_loader(0, len(self._log), self._link.rank)
