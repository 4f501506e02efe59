"""The rows of a network that runs block by block, a pass a block: a `RowFeed`."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.capture import keep_weights, one_pass
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import fitting
from dalr_stream.engine.layer_rows import LayerRows
from dalr_stream.engine.row_feed import Begun, Folds
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
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.folding import Folding


@dataclass(frozen=True, slots=True)
class BlockGroup(Sequence[str]):
    """The streams that are folded in one pass of a block: of some blocks none."""

    number: int
    streams: tuple[str, ...]
    again: bool = False
    """Whether the block ran before for other streams, and what it gives is on disk."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.streams[index]

    def __len__(self) -> int:
        return len(self.streams)


@dataclass(kw_only=True)
class BlockRows(LayerRows):
    """What makes the rows of each block's layers; the network's record is the same as of the whole network."""

    root: Path
    domain: str
    passes: BlockPasses
    pieces: Pieces
    probe: Probe | None
    """What the network gives for a made-up sample, as every capture looks at before its first batch."""
    keeps_weights: bool = True
    """Whether the store is given the layers' weights, for solving without the network."""
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

    def groups(self, folding: Folding, begun: Begun | None = None) -> Sequence[Collection[str]]:  # noqa: ARG002
        """Part the streams by block, and those of a block into passes that fit."""
        groups: list[BlockGroup] = []
        for number in range(self._last + 1):
            here = [layer for layer in self.layers if self.numbers[layer.stream] == number]
            parts: Sequence[tuple[str, ...]] = [tuple(layer.stream for layer in here)]
            if here and folding.memory_limit_bytes is not None:
                loads = [load_of(layer, 0, BatchMemory()) for layer in here if layer.stream not in self._shared]
                homes = fitting(loads, folding, batches=self.batches)
                parts = [tuple(name for name in parts[0] if self._shared.get(name, name) in one) for one in homes]
            groups += [BlockGroup(number, part, again=part is not parts[0]) for part in parts]
        return groups

    def send(self, streams: Collection[str], sink: Folds, folding: Folding, progress: Progress) -> None:
        """Run one block on every batch that is not folded yet."""
        assert isinstance(streams, BlockGroup)  # noqa: S101  # for the type checker: one of `groups`
        number, layers = streams.number, [layer for layer in self.layers if layer.stream in streams.streams]
        orders, stream = self._orders, self._stream(number, writes=not streams.again and number < self._last)
        stream.drop_spent()
        keep = None if number == len(self.passes) - 1 else self.passes.done[number]
        names = [module_name(layer.name) for layer in layers]
        onward = OnwardPass(names, stream, keep, orders, progress.note, tried=True, by_blocks=True)
        if number == 0 and self.probe is not None and sink.probed is not None:
            sink.probed(self.probe)
        resumed, begun = bool(sink.held), time.monotonic()
        with self.pieces.present(self.passes.pieces[number]):
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
        if number == 0 and self._last and not resumed and not streams.again:
            seconds = time.monotonic() - begun
            took, others = map(seconds_in_words, (seconds, seconds * self._last))
            progress.note(f"blocks: the first took {took}, so those after it ({self._last}) may take {others}")

    def finish(self) -> None:
        """Remove the stream between blocks."""
        self._stream(0).drop()

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
