"""The rows of a network that runs block by block, a pass a block: a `RowFeed`."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.blocks.groups import BlockGroup, BlockOrder
from dalr_stream.engine.blocks.way_back import WayBack
from dalr_stream.engine.capture import keep_weights, one_pass
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import fitting
from dalr_stream.engine.layer_rows import LayerRows
from dalr_stream.engine.row_feed import Begun, Folds
from dalr_stream.network.blocks.backward_proof import BackwardProof
from dalr_stream.network.blocks.graph_memory import graph_bytes
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.readings import shared_readings
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
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.folding import Folding


@dataclass(kw_only=True)
class BlockRows(LayerRows):
    """What makes the rows of each block's layers; the network's record is the same as of the whole network."""

    root: Path
    domain: str
    passes: BlockPasses
    pieces: Pieces
    probe: Probe | None
    """What the network gives for a made-up sample, as every capture looks at before its first batch."""
    keeps_moments: bool = True
    """Whether moments of all blocks are kept, and the layers' weights, for solving without the network."""
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

    def groups(self, folding: Folding, begun: Begun | None = None) -> Sequence[Collection[str]]:  # noqa: ARG002
        """Part the streams by block, and those of a block into passes that fit."""
        return self.order.groups(lambda number: self._parts(number, folding))

    def _parts(self, number: int, folding: Folding) -> Sequence[tuple[str, ...]]:
        """Return the streams of one block, in passes that fit."""
        here = [layer for layer in self.layers if self.numbers[layer.stream] == number]
        names = tuple(layer.stream for layer in here)
        if not here or folding.memory_limit_bytes is None:
            return [names]
        loads = [load_of(layer, 0, BatchMemory()) for layer in here if layer.stream not in self._shared]
        homes = fitting(loads, folding, self._graph_bytes, batches=self.batches)
        return [tuple(name for name in names if self._shared.get(name, name) in one) for one in homes]

    def send(self, streams: Collection[str], sink: Folds, folding: Folding, progress: Progress) -> None:
        """Run one block on every batch that is not folded yet."""
        assert isinstance(streams, BlockGroup)  # noqa: S101  # for the type checker: one of `groups`
        number, layers = streams.number, [layer for layer in self.layers if layer.stream in streams.streams]
        onward = self._onward(streams, layers, progress)
        if number == 0 and self.probe is not None and sink.probed is not None:
            sink.probed(self.probe)
        resumed, begun = bool(sink.held), time.monotonic()
        with self.pieces.present(self.passes.pieces[number]):
            if self.keeps_moments:
                keep_weights(self.model, layers, self.root, self._record.fingerprint)
            one_pass(
                self.model,
                self.batches,
                layers,
                sink,
                rows=self.rule,
                to_rows=rows_for(folding),
                title=f"block {number + 1} of {len(self.passes)}{', backward' if streams.back else ''}",
                progress=progress,
                onward=onward,
                probes=False,
            )
        if not resumed and not streams.again:
            self._note_duration(streams, time.monotonic() - begun, progress)

    def _onward(self, group: BlockGroup, layers: Sequence[LayerSpec], progress: Progress) -> ResumedPass:
        """Return how the network is run in a pass, and remove what neither it nor a later one reads."""
        number, orders, way_back = group.number, self._orders, self._way_back
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

    def _note_duration(self, group: BlockGroup, seconds: float, progress: Progress) -> None:
        """Tell from the first block how long the others may take."""
        way = self.order.back if group.back else self.order.forward
        if group.number == way[0] and len(way) > 1:
            took, others = map(seconds_in_words, (seconds, seconds * (len(way) - 1)))
            back = " on the way back" if group.back else ""
            progress.note(f"blocks: the first{back} took {took}, so those after it ({len(way) - 1}) may take {others}")

    def finish(self) -> None:
        """Remove the stream between blocks, and the gradients."""
        for name in (STREAM, BACK):
            self._stream(0, name=name).drop()

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
        streams = [self._stream(number, writes=True, name=PROOF) for number in range(len(self.passes))]
        try:
            places = proof.places(streams)
        finally:
            streams[0].drop()
        return WayBack(self.root, self.domain, {**self._facts, "gradients": gradients.words}, self.order, places)

    @property
    def _facts(self) -> dict[str, Any]:
        return {"network": self._record.fingerprint, "blocks": [list(block) for block in self.passes.blocks]}

    def _stream(self, number: int, *, writes: bool = False, name: str = STREAM) -> StoredStream:
        return StoredStream(self.root, self.domain, number, self.passes.places, self._facts, writes=writes, name=name)
