"""Checkpoints of ranks that share the sums of a layer: rank 0 writes and reads, a block of rows of one sum at a time.

    unfinished/<domain>/@direct-<group>/index                          which batches are in it
                                        <layer>-<slot>                 rows that fill no tile yet
                                        <layer>-<slot>@<sum>-<row>     a block of rows of one of the layer's sums

Blocks do not depend on who held them, so any number of ranks can resume. One that a single process left, with whole
matrices, is taken too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dalr_stream.errors import StoreDamagedError
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip
from dalr_stream.numerics.statistics.folding import LaneState
from dalr_stream.numerics.statistics.strip_shares import blocks_of
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.checkpoints import Checkpoints, SavedFold
from dalr_stream.streaming.fold_sink import INDEX
from dalr_stream.streaming.pass_log import PassLog
from dalr_stream.streaming.ranks.link import Link, Message, tell
from dalr_stream.streaming.ranks.strip_sums import StripSums
from dalr_stream.streaming.ranks.sums_message import strip_from, strip_message

_STRIPS = "strips"
_PENDING = "pending", "pending_sample"


def left_in_strips(checkpoints: Checkpoints | None) -> bool:
    """Tell whether the last checkpoint was written by ranks that share the sums of a layer, which alone can read it."""
    index = checkpoints.load(INDEX) if checkpoints else None
    return index is not None and _STRIPS in index.values


class StripCheckpoints:
    """What one rank does for a checkpoint to be written or read; rank 0 has `kept`, where they lie."""

    def __init__(self, link: Link, sums: StripSums, log: PassLog, kept: Checkpoints | None) -> None:
        self._link = link
        self._sums = sums
        self._log = log
        self._kept = kept
        self._slot = 0

    @property
    def kept(self) -> bool:
        """Whether there are any."""
        return self._kept is not None

    def keep(self) -> None:
        """Write one; every rank is at the same batch."""
        self._slot = 1 - self._slot
        for name in self._log.rows:
            if self._kept is None:
                self._send(name)
                continue
            head = self._sums.head(name, len(self._log))
            self._kept.save(self._name(name), head)
            for number, block, lane in self._taken(name, _count(head, self._sums.rule(name))):
                self._kept.save(self._name(name, number, block), SavedFold([lane], {"batches": len(self._log)}))
        self._keep_index(ended=False)

    def keep_end(self) -> None:
        """Record that the pass is complete and its moments are in the store."""
        self._keep_index(ended=True)

    def resume(self) -> bool:
        """Go on, on every rank, from the checkpoint that rank 0 finds; tell whether its pass was complete."""
        told = tell(self._link, self._load_index())
        if not told:
            return False
        self._log.resume(told, ended=told["ended"])
        if told["ended"]:
            return True
        self._slot = told["slot"]
        self._sums.deal({name: known.features for name, known in self._log.rows.items()})
        heads, held = {}, {}
        for name in self._log.rows:
            head = self._shared_head(name)
            heads[name], held[name] = replace(head, lanes=()), self._restored(name, head)
        self._sums.restore(told.get("sums", []), heads, held)
        return False

    # --- writing -------------------------------------------------------------------------------------------------

    def _keep_index(self, *, ended: bool) -> None:
        if self._kept is not None:
            values = {"ended": ended, "slot": self._slot, _STRIPS: True, "sums": self._sums.segments}
            self._kept.save(INDEX, SavedFold(values={**values, **self._log.plain()}))

    def _send(self, name: str) -> None:
        for strip, lanes in zip(self._sums.own(name), self._sums.held(name), strict=True):
            for lane in lanes:
                for block in blocks_of(strip):
                    self._link.send(0, strip_message(lane.rows(block)))

    def _taken(self, name: str, count: int) -> Iterator[tuple[int, Strip, LaneState]]:
        """Yield each block of each of a layer's `count` sums, whosever it is."""
        own = self._sums.held(name)
        for piece in self._sums.pieces[name]:
            lanes = next(own) if piece.rank == 0 else None
            for number in range(count):
                for block in blocks_of(piece.strip):
                    received = None if lanes is not None else strip_from(self._link.receive(piece.rank))
                    yield number, block, received if lanes is None else lanes[number].rows(block)  # type: ignore[misc]

    def _name(self, name: str, number: int | None = None, block: Strip | None = None) -> str:
        return f"{name}-{self._slot}" + ("" if block is None else f"@{number}-{block.first}")

    # --- reading -------------------------------------------------------------------------------------------------

    def _load_index(self) -> Mapping[str, Any]:
        """Return the index of a checkpoint that is whole; nothing where there is none."""
        index = self._kept.load(INDEX) if self._kept is not None else None
        if index is None:
            return {}
        values = index.values
        self._slot = values["slot"]
        batches = len(Batches.of_plain(values["batches"]))
        widths = {name: known["features"] for name, known in values["rows"].items()}
        whole = values["ended"] or all(self._is_whole(name, width, batches) for name, width in widths.items())
        return values if whole else {}  # damaged: start over

    def _is_whole(self, name: str, features: int, batches: int) -> bool:
        """Tell whether all that was written of a layer can be read, since later on the other ranks rely on it."""
        head = self._load(self._name(name))
        if head is None or head.values["batches"] != batches:
            return False
        if head.lanes:
            return True
        numbers, blocks = range(_count(head, self._sums.folding.rule(features))), blocks_of(Strip(0, features))
        read = (self._load(self._name(name, number, block)) for block in blocks for number in numbers)
        return all(one is not None and one.values["batches"] == batches for one in read)

    def _load(self, name: str) -> SavedFold | None:
        return None if self._kept is None else self._kept.load(name)

    def _shared_head(self, name: str) -> SavedFold:
        """Return a layer's head on every rank, where it is a single process's with its whole matrices on rank 0."""
        if self._link.rank:
            message = self._link.receive(0)
            return SavedFold((), message.facts, dict(zip(_PENDING, message.arrays, strict=False)))
        head = self._load(self._name(name)) or SavedFold()
        head = replace(head, values={"sums": [], **head.values})
        for rank in range(1, self._link.ranks):
            self._link.send(rank, Message(head.values, [head.pending[part] for part in _PENDING if head.pending]))
        return head

    def _restored(self, name: str, head: SavedFold) -> list[list[LaneState]]:
        """Return the sums of this rank's strips; rank 0 sends the others theirs."""
        numbers, mine = range(_count(head, self._sums.rule(name))), []
        for piece in self._sums.pieces[name]:
            if self._link.rank == 0 and piece.rank:
                for lane in (lane for number in numbers for lane in self._blocks(name, head, number, piece.strip)):
                    self._link.send(piece.rank, strip_message(lane))
            elif piece.rank == self._link.rank:
                sums = (self._blocks(name, head, number, piece.strip) for number in numbers)
                mine.append([_joined(piece.strip, blocks) for blocks in sums])
        return mine

    def _blocks(self, name: str, head: SavedFold, number: int, strip: Strip) -> Iterator[LaneState]:
        """Yield a strip of one sum by blocks of rows: as rank 0 reads them, or as it sends them."""
        for block in blocks_of(strip):
            if self._link.rank:
                yield strip_from(self._link.receive(0))
            elif head.lanes:
                yield head.lanes[number].rows(block)
            else:
                saved = self._load(self._name(name, number, block))
                if saved is None:
                    raise StoreDamagedError(f"layer '{name}': its checkpoint is no longer there: run the command again")
                yield saved.lanes[0]


def _count(head: SavedFold, rule: FoldRule) -> int:
    """Return how many sums a layer has: in the tree, and those that are being folded."""
    folding = rule.lanes if "next_tile" in head.values else 0
    return len(rule.partitions) * (len(head.values.get("sums", ())) + folding)


def _joined(strip: Strip, blocks: Iterator[LaneState]) -> LaneState:
    """Put the blocks of a strip together, holding one of them at a time."""
    shape = (strip.stop - strip.first, strip.stop)
    training, heldout, last = np.zeros(shape), np.zeros(shape), LaneState.empty(FoldRule(strip.stop), strip)
    for last in blocks:
        for into, state in ((training, last.training), (heldout, last.heldout)):
            if state is not None:
                h, stop = state.scatter.shape
                into[stop - h - strip.first : stop - strip.first, :stop] = state.scatter
    return LaneState(
        replace(last.training, scatter=training),
        None if last.heldout is None else replace(last.heldout, scatter=heldout),
    )
