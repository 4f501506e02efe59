"""The rows of a network that runs block by block, a pass a block: a `RowFeed`."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.capture import keep_weights, one_pass
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import fitting
from dalr_stream.engine.layer_rows import LayerRows
from dalr_stream.engine.ranks.one_store import mark_folder, require_one_store
from dalr_stream.engine.row_feed import Begun, Folds, Group
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.readings import shared_readings
from dalr_stream.network.capture.batches import few_samples
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.proofs.proved import prove
from dalr_stream.network.capture.resuming.onward import OnwardPass
from dalr_stream.network.capture.resuming.stored_states import StoredStream
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.progress import Progress, seconds_in_words
from dalr_stream.storage.contents import NetworkRecord
from dalr_stream.storage.places.place import Place, remove_folder
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.ranks.link import Alone, Link


@dataclass(kw_only=True)
class BlockRows(LayerRows):
    """What makes the rows of each block's layers; the network's record is the same as of the whole network."""

    root: Place
    domain: str
    passes: BlockPasses
    pieces: Pieces
    probe: Probe | None
    """What the network gives for a made-up sample, as every capture looks at before its first batch."""
    keeps_weights: bool = True
    """Whether the store is given the layers' weights, for solving without the network."""
    link: Link = field(default_factory=Alone)
    """To the other ranks, each of which takes its own batches through every block; all see the stream in the store."""
    is_one_store: bool = field(default=False, init=False)
    numbers: dict[str, int] = field(init=False)
    """The pass of each stream."""

    def __post_init__(self) -> None:
        self.numbers = {layer.stream: self.passes.pass_of(module_name(layer.name)) for layer in self.layers}

    def network(self) -> NetworkRecord:
        """Return what identifies the network and its streams: weights are read from their files once for it."""
        return self._record

    @cached_property
    def _record(self) -> NetworkRecord:
        return super().network()

    def keep_weights(self, root: Place, network: NetworkRecord) -> None:
        """Write none yet: those of a block's layers are written when it is in memory."""

    def groups(self, folding: Folding, begun: Begun = ()) -> Sequence[Group]:
        """Part the streams by block, and those of a block into passes that fit."""
        groups: list[Group] = []
        before = deque(begun)
        for number in range(self._last + 1):
            here = [layer.stream for layer in self.layers if self.numbers[layer.stream] == number]
            parts = self._as_before(before, here, folding)
            left = [stream for stream in here if not any(stream in part for part in parts)]
            parts += self._fitting(left, folding) if left or not parts else []
            groups += [dataclasses.replace(part, block=number, again=again > 0) for again, part in enumerate(parts)]
        return groups

    def _as_before(self, begun: deque[tuple[tuple[str, ...], bool]], here: list[str], folding: Folding) -> list[Group]:
        """Return the passes of a block that an earlier run began, and take them off `begun`."""
        parts: list[Group] = []
        while begun and bool(begun[0][0]) == bool(here) and {*begun[0][0]} <= {*here} and (here or not parts):
            streams, done = begun.popleft()
            parts += [Group(streams)] if done else self._fitting(streams, folding)
        return parts

    def _fitting(self, streams: Sequence[str], folding: Folding) -> list[Group]:
        """Part some streams of a block into passes that fit."""
        if folding.memory_limit_bytes is None or not streams:
            return [Group(tuple(streams))]
        layers = [layer for layer in self.layers if layer.stream in streams and layer.stream not in self._shared]
        loads = [load_of(layer, 0, BatchMemory()) for layer in layers]
        homes = fitting(loads, folding, batches=self.batches, ranks=self.link.ranks)
        return [one.with_shared(streams, self._shared) for one in homes]

    def send(self, group: Group, sink: Folds, folding: Folding, progress: Progress) -> None:
        """Run one block on every batch that is not folded yet."""
        assert group.block is not None  # noqa: S101  # for the type checker: one of `groups`
        self._one_store()
        number, layers = group.block, [layer for layer in self.layers if layer.stream in group]
        orders, stream = self._orders, self._stream(number, writes=not group.again and number < self._last)
        keep = None if number == len(self.passes) - 1 else self.passes.done[number]
        names = [module_name(layer.name) for layer in layers]
        onward = OnwardPass(names, stream, keep, orders, progress.note, tried=True, by_blocks=True)
        if number == 0 and self.probe is not None and sink.probed is not None:
            sink.probed(self.probe)
        resumed, begun = bool(sink.held), time.monotonic()
        with self.pieces.present(self.passes.pieces[number]):
            if self.link.rank == 0:
                stream.drop_spent()
                if self.keeps_weights:
                    keep_weights(self.model, layers, self.root, self._record.fingerprint)
            one_pass(
                self.model,
                self.batches,
                layers,
                sink,
                rows=self.rule,
                to_rows=rows_for(folding),
                title=f"block {number + 1} of {len(self.passes)}",
                progress=progress,
                onward=onward,
                probes=False,
            )
        if number == 0 and self._last and not resumed and not group.again:
            seconds = time.monotonic() - begun
            took, others = map(seconds_in_words, (seconds, seconds * self._last))
            progress.note(f"blocks: the first took {took}, so those after it ({self._last}) may take {others}")

    def finish(self) -> None:
        """Remove the stream between blocks."""
        remove_folder(mark_folder(self.root, self.domain))  # of ranks of which the first was killed
        self._stream(0).drop()

    def _one_store(self) -> None:
        """Look once, before the first pass, whether all ranks see the stream."""
        if not self.is_one_store:
            require_one_store(self.link, self.root, self.domain)
            self.is_one_store = True

    @cached_property
    def _orders(self) -> Orders | None:
        return prove(self.model, self.batches, self.layers, self.rule)

    @cached_property
    def _shared(self) -> dict[str, str]:
        """Streams of inputs that another one of the same block has too."""
        return shared_readings(self.model, few_samples(self._first, 1), self.layers, self.numbers)

    @cached_property
    def _first(self) -> Any:
        return SameEveryPass(self.batches).first()

    @property
    def _last(self) -> int:
        """The pass of the last block that is watched."""
        return max(self.numbers.values())

    def _stream(self, number: int, *, writes: bool = False) -> StoredStream:
        blocks = [list(block) for block in self.passes.blocks]
        facts = {"network": self._record.fingerprint, "blocks": blocks}
        return StoredStream(self.root, self.domain, number, self.passes.places, facts, writes=writes)
