"""Rows of batches that are dealt to ranks by number: how they are sent, and how every rank gets those of all.

Batch b is rank b mod R's. Where every rank needs its rows, they take the tree of `link`, up to rank 0 and down to
everybody else, so they cross each connection once. The loader of each rank must give the same batches: whoever has the
digest of another's batch compares it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.numerics.rows.share import UNSEEN, Share
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.streaming.ranks.link import Link, Message, rank_above, ranks_below

_COMPARED = 50
"""One in so many batches of each rank is loaded by rank 0 too."""
_SHARED_AT_ONCE = 2**16
"""Batches for which a loader is told at a time which ones it has to load."""


def own_batches(first: int, link: Link) -> Share:
    """Return what a rank loads of the batches from a number on: its own, and rank 0 some of the others'."""
    numbers, rank, ranks = range(first, first + _SHARED_AT_ONCE), link.rank, link.ranks
    compared = ranks * _COMPARED if rank == 0 else 0
    own = [each for each in numbers if each % ranks == rank or (compared and each % compared < ranks)]
    return Share(numbers.stop, own)


def rows_message(number: int, batch: RowBatch, to_host: Callable[[Any], Any] = np.asarray) -> Message:
    """Return what sends the rows of a batch, those that layers share once."""
    places: dict[int, int] = {}
    arrays: list[Any] = []

    def place(array: Any) -> int:
        if id(array) not in places:
            places[id(array)] = len(arrays)
            arrays.append(to_host(array))
        return places[id(array)]

    facts = {
        "batch": number,
        "samples": batch.samples,
        "digest": batch.digest,
        "rows": {name: place(rows) for name, rows in batch.rows.items()},
        "counts": {name: place(counts) for name, counts in batch.counts.items()},
    }
    return Message(facts, arrays)


def batch_from(message: Message, rank: int, number: int, seen: RowBatch, here: int = 0) -> RowBatch:
    """Return the rows that rank `rank` sent of batch `number`, of which `seen` is what is known on rank `here`.

    Raises FingerprintMismatchError where they are another batch's.
    """
    facts, arrays = message.facts, list(message.arrays)
    theirs = facts.get("digest") if seen.digest == UNSEEN else seen.digest
    if (facts.get("batch"), facts.get("samples"), facts.get("digest")) != (number, seen.samples, theirs):
        raise other_loader(rank, number, here)
    rows = {name: arrays[place] for name, place in facts["rows"].items()}
    counts = {name: arrays[place] for name, place in facts["counts"].items()}
    return RowBatch(seen.samples, str(theirs), rows, counts)


def other_loader(rank: int, batch: int, here: int = 0) -> FingerprintMismatchError:
    """Return what to raise where a rank's loader gave it other batches than that of rank `here`."""
    return FingerprintMismatchError(
        f"ranks: batch {batch} is not the same for rank {rank} and rank {here}: the loader of each rank must give all "
        "batches, the same in the same order, of which it runs its own: take no sampler that deals samples to ranks, "
        "and turn off shuffling and random augmentation"
    )


class RowExchange:
    """Gives every rank the rows of every batch."""

    def __init__(self, link: Link, to_host: Callable[[Any], Any], stage: Callable[[Any], Any]) -> None:
        """`to_host` gives rows as an array that can be sent, `stage` brings one to where it is folded."""
        self._link = link
        self._to_host = to_host
        self._stage = stage
        above = [rank_above(link.rank)] if link.rank else []
        self._neighbours = [*above, *ranks_below(link.rank, link.ranks)]

    def owner(self, number: int) -> int:
        """Return the rank that runs the network on a batch."""
        return number % self._link.ranks

    def shared(self, number: int, batch: RowBatch) -> RowBatch:
        """Return batch `number` with its rows: this rank's own, which is sent to all others, or what they sent."""
        owner = self.owner(number)
        if owner == self._link.rank:
            if self._neighbours:
                self._pass_on(rows_message(number, batch, self._to_host))
            return batch
        source = self._towards(owner)
        message = self._link.receive(source)
        message = Message(message.facts, list(message.arrays))
        found = batch_from(message, owner, number, batch, self._link.rank)
        self._pass_on(message, source)
        staged = {id(rows): self._stage(rows) for rows in found.rows.values()}
        rows = {name: staged[id(rows)] for name, rows in found.rows.items()}
        return RowBatch(found.samples, found.digest, rows, found.counts)

    def _pass_on(self, message: Message, source: int | None = None) -> None:
        for rank in self._neighbours:
            if rank != source:
                self._link.send(rank, message)

    def _towards(self, owner: int) -> int:
        """Return the neighbour from which what a rank sends comes: a rank below leads to those up to the next one."""
        mine = self._link.rank
        below = (rank for rank in ranks_below(mine, self._link.ranks) if rank <= owner < rank + (rank & -rank))
        return next(below, rank_above(mine))
