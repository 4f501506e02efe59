"""The rows of a network that runs block by block, a pass a block: a `RowFeed`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.blocks.groups import BlockOrder
from dalr_stream.engine.blocks.way_back import WayBack
from dalr_stream.engine.capture import keep_weights, one_pass
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import fitting
from dalr_stream.engine.layer_rows import LayerRows
from dalr_stream.engine.ranks.one_store import mark_folder, require_one_store
from dalr_stream.engine.row_feed import Begun, Folds, Group
from dalr_stream.network.blocks.backward_proof import BackwardProof
from dalr_stream.network.blocks.graph_memory import graph_bytes
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.readings import shared_readings
from dalr_stream.network.blocks.walk import BlockWalk
from dalr_stream.network.capture.batches import few_samples, samples_in
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.proofs.proved import prove
from dalr_stream.network.capture.resuming.onward import OnwardPass, ResumedPass
from dalr_stream.network.capture.resuming.stored_states import BACK, PROOF, STREAM, StoredStream
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.progress import Progress, seconds_in_words
from dalr_stream.storage.contents import NetworkRecord
from dalr_stream.storage.layout import UNFINISHED
from dalr_stream.storage.places.place import Place, folders, remove_folder
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
    keeps_moments: bool = True
    """Whether moments of all blocks are kept, and the layers' weights, for solving without the network."""
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

    @cached_property
    def order(self) -> BlockOrder:
        """Which blocks are run, forward and back."""
        return BlockOrder.of(self.layers, self.numbers, len(self.passes), all_back=not self.keeps_moments)

    def groups(self, folding: Folding, begun: Begun = ()) -> Sequence[Group]:
        """Part the streams by block, and those of a block into passes that fit."""
        before = deque(begun)

        def parts(streams: Sequence[str]) -> list[Group]:
            found = self._as_before(before, streams, folding)
            left = [stream for stream in streams if not any(stream in part for part in found)]
            return [*found, *(self._fitting(left, folding) if left or not found else [])]

        by_block: list[list[str]] = [[] for _ in range(len(self.passes))]
        for layer in self.layers:
            by_block[self.numbers[layer.stream]].append(layer.stream)
        return self.order.groups(by_block, parts)

    def _as_before(
        self, begun: deque[tuple[tuple[str, ...], bool]], streams: Sequence[str], folding: Folding
    ) -> list[Group]:
        """Return the passes over a block that an earlier run began, and take them off `begun`."""
        found: list[Group] = []
        while begun and bool(begun[0][0]) == bool(streams) and {*begun[0][0]} <= {*streams} and (streams or not found):
            again, done = begun.popleft()
            found += [Group(again)] if done else self._fitting(again, folding)
        return found

    def _fitting(self, streams: Sequence[str], folding: Folding) -> list[Group]:
        """Part some streams of a block into passes that fit."""
        if folding.memory_limit_bytes is None or not streams:
            return [Group(tuple(streams))]
        layers = [layer for layer in self.layers if layer.stream in streams and layer.stream not in self._shared]
        loads = [load_of(layer, 0, BatchMemory()) for layer in layers]
        homes = fitting(loads, folding, self._graph_bytes, batches=self.batches, ranks=self.link.ranks)
        return [one.with_shared(streams, self._shared) for one in homes]

    def send(self, group: Group, sink: Folds, folding: Folding, progress: Progress) -> None:
        """Run one block on every batch that is not folded yet."""
        assert group.block is not None  # noqa: S101  # for the type checker: one of `groups`
        self._one_store()
        number, layers = group.block, [layer for layer in self.layers if layer.stream in group]
        onward = self._onward(group, number, layers, progress)
        if number == 0 and self.probe is not None and sink.probed is not None:
            sink.probed(self.probe)
        resumed, begun = bool(sink.held), time.monotonic()
        with self.pieces.present(self.passes.pieces[number]):
            if self.keeps_moments and self.link.rank == 0:
                keep_weights(self.model, layers, self.root, self._record.fingerprint)
            one_pass(
                self.model,
                self.batches,
                layers,
                sink,
                rows=self.rule,
                to_rows=rows_for(folding),
                title=f"block {number + 1} of {len(self.passes)}{', backward' if group.back else ''}",
                progress=progress,
                onward=onward,
                probes=False,
            )
        if not resumed and not group.again:
            self._note_duration(group, time.monotonic() - begun, progress)

    def _onward(self, group: Group, number: int, layers: Sequence[LayerSpec], progress: Progress) -> ResumedPass:
        """Return how the network is run in a pass, and remove what neither it nor a later one reads."""
        orders, way_back = self._orders, self._way_back
        stream = self._stream(number, writes=not group.again and number < self.order.last)
        if way_back is not None and group.back:
            return way_back.backward(stream, orders, again=group.again)
        if way_back is None or number <= way_back.turn:
            stream.drop_spent()
        if way_back is not None and number >= way_back.turn:
            return way_back.forward(stream, self.model, orders)
        keep = None if number == len(self.passes) - 1 else self.passes.done[number]
        names = [module_name(layer.name) for layer in layers]
        return OnwardPass(names, stream, keep, orders, progress.note, tried=True, by_blocks=True)

    def _note_duration(self, group: Group, seconds: float, progress: Progress) -> None:
        """Tell from the first block how long the others may take."""
        way = self.order.back if group.back else self.order.forward
        if group.block == way[0] and len(way) > 1:
            took, others = map(seconds_in_words, (seconds, seconds * (len(way) - 1)))
            back = " on the way back" if group.back else ""
            progress.note(f"blocks: the first{back} took {took}, so those after it ({len(way) - 1}) may take {others}")

    def finish(self) -> None:
        """Remove the stream between blocks, the gradients, and what ranks left that were killed."""
        remove_folder(mark_folder(self.root, self.domain))
        for folder in folders(self.root / UNFINISHED / self.domain):
            if folder.name.startswith(PROOF):
                remove_folder(folder)
        for name in (STREAM, BACK):
            self._stream(0, name=name).drop()

    def _one_store(self) -> None:
        """Look once, before the first pass, whether all ranks see the stream."""
        if not self.is_one_store:
            require_one_store(self.link, self.root, self.domain)
            self.is_one_store = True

    @cached_property
    def _orders(self) -> Orders | None:
        walk = BlockWalk(self.model, self.passes, self.pieces)
        return prove(self.model, self.batches, self.layers, self.rule, walk)

    @cached_property
    def _shared(self) -> dict[str, str]:
        """Streams of inputs that another one of the same block has too."""
        return shared_readings(self.model, few_samples(self._first, 1), self.layers, self.numbers)

    @cached_property
    def _first(self) -> Any:
        return SameEveryPass(self.batches).first()

    @cached_property
    def _graph_bytes(self) -> int:
        """What a batch holds on its way through a block and back; nothing without gradients."""
        if self.rule.gradients is None:
            return 0
        first, rule = self._first, self.rule.gradients
        return graph_bytes(self.model, first, self.passes, self.pieces, self.order.followed, rule)

    @cached_property
    def _way_back(self) -> WayBack | None:
        """What the way back needs, proved on a few samples; None where no gradients are watched."""
        gradients = self.rule.gradients
        if gradients is None:
            return None
        several, followed = next((one for one in self.batches if samples_in(one) > 1), self._first), self.order.followed
        proof = BackwardProof(self.model, several, self.passes, self.pieces, followed, self.rule, self._orders)
        own = f"{PROOF}{self.link.rank or ''}"
        streams = [self._stream(number, writes=True, name=own) for number in range(len(self.passes))]
        try:
            places = proof.places(streams)
        finally:
            streams[0].drop(others_write=self.link.ranks > 1)
        facts = {**self._facts, "gradients": gradients.words}
        return WayBack(self.root, self.domain, facts, self.order, places, removes=self.link.rank == 0)

    @property
    def _facts(self) -> dict[str, Any]:
        return {"network": self._record.fingerprint, "blocks": [list(block) for block in self.passes.blocks]}

    def _stream(self, number: int, *, writes: bool = False, name: str = STREAM) -> StoredStream:
        removes = self.link.rank == 0 or name.startswith(PROOF)
        return StoredStream(
            self.root,
            self.domain,
            number,
            self.passes.places,
            self._facts,
            writes=writes,
            removes=removes,
            name=name,
        )
