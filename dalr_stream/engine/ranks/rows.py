"""A capture by several ranks: each runs the network on its batches and sends their rows; rank 0 writes all, in order.

Batch b is rank b mod R's. Rank 0 takes them in their order, so the store is what one process writes, to the bit, and
its commits, digests and resuming are as ever. A rank is at most one batch ahead of rank 0. A loader that can give
single batches loads those of its rank, and on rank 0 some of the others'; any other is iterated over by every rank.
Rank 0 compares the digests that a rank sends with those of what its own loader gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.share import UNSEEN, Share
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.writer import ActivationWriter
from dalr_stream.streaming.ranks.link import Link, Message, tell
from dalr_stream.streaming.ranks.row_exchange import batch_from, other_loader, own_batches, rows_message


class DealtWriter:
    """The sink of rank 0: what it computes itself goes to the store, what others do is fetched when it is due."""

    def __init__(self, writer: ActivationWriter, link: Link) -> None:
        """Tell the others where the store goes on; they are not needed for one that is complete."""
        self._writer = writer
        self._link = link
        self._alone = writer.complete
        self._seen = 0
        tell(link, {"held": list(writer.held), "first": writer.committed_batches, "over": writer.complete})

    @property
    def probed(self) -> Callable[[Probe], None] | None:
        """The writer's."""
        return self._writer.probed

    @property
    def held(self) -> Sequence[int]:
        """The writer's."""
        return self._writer.held

    @property
    def share_from(self) -> Callable[[int], Share] | None:
        """What this rank loads: its own batches, and some of the others' to be compared."""
        return None if self._alone else partial(own_batches, link=self._link)

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Fetch the rows of another rank's batch and write them; True where this rank need not run it."""
        self._link.check()
        self._seen = batch + 1
        if digest != UNSEEN and self._writer.skip(batch, samples, digest):
            return True
        owner = batch % self._link.ranks
        if owner == 0 or self._alone:
            return False
        fetched = self._fetched(owner, batch, samples, digest)
        if digest == UNSEEN:
            self._writer.skip(batch, samples, fetched.digest)  # compares it; a batch that is stored is not dealt
        self._writer.write(fetched)
        return True

    def write(self, batch: RowBatch) -> None:
        """Write the rows of a batch of this rank's."""
        self._writer.write(batch)

    def finish(self) -> None:
        """Hear from each rank that it came to the same end, and finish the domain."""
        for rank in range(1, self._link.ranks) if not self._alone else ():
            facts = self._link.receive(rank).facts
            if facts != {"ended": self._seen}:
                raise other_loader(rank, self._seen)
        self._writer.finish()

    def _fetched(self, rank: int, batch: int, samples: int, digest: str) -> RowBatch:
        return batch_from(self._link.receive(rank), rank, batch, RowBatch(samples, digest, {}))


class SentRows:
    """The sink of any other rank: the rows of its batches go to rank 0."""

    def __init__(self, link: Link) -> None:
        self._link = link
        told = tell(link, None)
        self._first: int = told["first"]
        self._seen = 0
        self._next = 0
        self.probed: Callable[[Probe], None] | None = None
        self.held: Sequence[int] = told["held"]
        self.over: bool = told["over"]
        """Whether the domain is complete, and nothing is left to do."""

    def share_from(self, first: int) -> Share:
        """Return the batches that this rank loads: its own."""
        return own_batches(first, self._link)

    def skip(self, batch: int, samples: int, digest: str) -> bool:  # noqa: ARG002  # a RowSink
        """Tell whether a batch is another rank's, or in the store; rank 0 compares those that are."""
        self._link.check()
        self._seen, self._next = batch + 1, batch
        return batch < self._first or batch % self._link.ranks != self._link.rank

    def write(self, batch: RowBatch) -> None:
        """Send the rows of a batch of this rank's."""
        self._link.send(0, rows_message(self._next, batch))

    def finish(self) -> None:
        """Tell rank 0 how many batches there were."""
        self._link.send(0, Message({"ended": self._seen}))
