"""One sweep over the blocks: each is solved on what the compressed ones before it give, and what it gives goes on.

    for each block        its weights are read
        for each pass     both networks run from what the block before gave, as far as the layers whose turn it is
        it is kept        compressed, and the moments of its passes go
        for each batch    original and compressed block run once more, and what they give is written to the store

Killed anywhere it goes on there: in the pass, in the block, or among the batches on their way to the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dalr_stream.engine.sequential.blocks.block_record import BlockRecord, facts_of
from dalr_stream.engine.sequential.blocks.known_batches import KnownBatches
from dalr_stream.engine.sequential.blocks.preparation import PreparedBlock
from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.onward_passes import OnwardPasses
from dalr_stream.engine.sequential.pass_moments import TARGET, PassMoments
from dalr_stream.engine.sequential.passes import SequentialCompression, after_a_pass, in_words
from dalr_stream.engine.sequential.sequential_pass import LayerOutcome, SequentialPass
from dalr_stream.errors import StoreError
from dalr_stream.network.blocks.block_network import BlockNetwork, LeftInStore
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.given import UsedError
from dalr_stream.network.capture.resuming.kept_states import Room
from dalr_stream.network.capture.resuming.stored_states import COMPRESSED, STREAM, StoredStream
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.progress import Progress
from dalr_stream.storage.json_record import RecordKind, digest_of, read_record, write_record
from dalr_stream.storage.layout import UNFINISHED
from dalr_stream.storage.places.place import Place, remove_file
from dalr_stream.streaming.folding import Folding

_REACHED = RecordKind("sweep over blocks", 1, "compress by blocks")


@dataclass(slots=True)
class Sweep:
    """A network on its way through its blocks."""

    model: nn.Module
    root: Place
    passes: BlockPasses
    pieces: Pieces
    known: KnownBatches
    choices: Mapping[str, LayerChoice]
    blocks: Mapping[int, PreparedBlock]
    made_from: Mapping[str, Any]
    """What identifies the network, its blocks and the batches."""
    solved_by: str
    """What else decides the solutions: target, rows and folding."""
    orders: Orders | None
    orders_of_source: Orders | None
    folding: Folding
    rule: RowRule
    progress: Progress
    outcomes: dict[str, LayerOutcome] = field(default_factory=dict)
    _chain: list[str] = field(default_factory=list)
    """What identifies the compressed network as far as each pass runs it."""

    def run(self) -> None:
        """Do all that is not done yet."""
        solved = self._solved()
        begin = self._reached() if solved <= self.last else solved
        for number in range(begin, self.last + 1):
            self._drop_spent(number)
            with self.pieces.present(self.passes.pieces[number]), without_gradients(), self._explained(number):
                self._block(number, solved=number < solved)
            if number < self.last:
                self._keep_reached(number)
        self.drop()

    @property
    def last(self) -> int:
        """The last block in which there is something to do."""
        return max(self.blocks)

    def drop(self) -> None:
        """Remove the streams between blocks, and how far they came."""
        remove_file(self._mark)
        for compressed in (True, False):
            self._stream(0, compressed=compressed).drop()

    def _solved(self) -> int:
        """Return the first block that is to be solved, and take in what became of those before it."""
        for number in range(self.last + 1):
            before = self._before(number)
            if number not in self.blocks:
                self._chain.append(before)
                continue
            record = BlockRecord(self.root, number)
            outcomes = record.outcomes(self._choices(number), self._asked(number))
            if outcomes is None:
                return number
            record.drop_passes()
            self._take(number, outcomes)
        return self.last + 1

    def _reached(self) -> int:
        """Return the block to begin with; where the streams are of another sweep, they are removed."""
        try:
            reached = read_record(self._mark, _REACHED)
        except StoreError:  # none, damaged, or of another version
            reached = None
        if reached is not None and reached["made_from"] == self._identity:
            if reached["block"] == -1:
                return 0
            if reached["block"] < len(self._chain) and reached["compressed"] == self._chain[reached["block"]]:
                return int(reached["block"]) + 1
        self.drop()
        self._keep_reached(-1)
        return 0

    def _keep_reached(self, block: int) -> None:
        compressed = "" if block == -1 else self._chain[block]
        write_record(self._mark, _REACHED, {"made_from": self._identity, "block": block, "compressed": compressed})

    def _block(self, number: int, *, solved: bool) -> None:
        then = BlockNetwork(self.model, self.passes, number, self._left(number, compressed=False), self._identity)
        before, now = self._before(number), then
        if self._parted(number):
            now = then.beside(self._left(number, compressed=True), before)
        small: nn.Module = now
        if number in self.blocks and solved:
            small = self._kept(number, now)
        elif number in self.blocks:
            state = self._solve(self.blocks[number], then, now)
            small = state.network
            self._take(number, state.layers)
        elif number >= len(self._chain):
            self._chain.append(before)
        if number < self.last:
            self._advance(number, then, small)

    def _kept(self, number: int, now: BlockNetwork) -> BlockNetwork:
        """Return a block that was compressed before."""
        kept = now.own_copy()
        BlockRecord(self.root, number).load_into(kept)
        return kept

    def _solve(self, block: PreparedBlock, then: BlockNetwork, now: BlockNetwork) -> SequentialCompression:
        """Solve the layers of a block, and keep it."""
        note, record = self.progress.note, BlockRecord(self.root, block.number)
        note(f"block {block.number + 1} of {len(self.passes)}: {in_words(block.passes)}")
        onward = OnwardPasses(
            then, self.known.batches, block.passes, block.selected, block.targets.layers, self.rule,
            Room(block.plan.room_bytes), note, lambda _: self.orders, self.orders_of_source, block.attentions,
        )  # fmt: skip
        moments = PassMoments(then, self.rule, self.progress, onward, record.passes, None, block.batch)
        batches, source = self.known.batches, self.known.source
        choices = self._choices(block.number)
        one_pass = SequentialPass(
            then, choices, batches, source, self.folding, moments, block.targets, block.attentions
        )
        state = SequentialCompression(now, block.passes)
        for words in block.targets.words:
            note(words)
        while state.left:
            state = after_a_pass(state, one_pass, onward, self.known.first, self.progress)
        record.keep(state.network, state.layers, self._asked(block.number))
        return state

    def _advance(self, number: int, then: BlockNetwork, small: Any) -> None:
        """Take every batch through a block, in both networks, where that is not on disk yet."""
        ways = [(then, self._stream(number, compressed=False))]
        if self._parted(number + 1):
            ways.append((small, self._stream(number, compressed=True)))
        title = f"block {number + 1} of {len(self.passes)}: onward"
        with self.progress.track(title, None, "batches") as advance:
            for key, inputs in self.known.each():
                for block, stream in ways:
                    if not stream.has(key):
                        stream.keep(key, block.onward(inputs))
                advance(1)
            block, stream = ways[-1]  # nothing is compared with what the original gives of the source
            for key, inputs in self.known.of_source():
                if not stream.has(key):
                    stream.keep(key, block.onward(inputs))
                advance(1)

    @contextmanager
    def _explained(self, number: int) -> Iterator[None]:
        try:
            yield
        except UsedError:
            self._stream(number, compressed=False).forget()  # says why it is refused

    def _take(self, number: int, outcomes: Mapping[str, LayerOutcome]) -> None:
        self.outcomes |= outcomes
        self._chain.append(digest_of([self._before(number), BlockRecord(self.root, number).identity]))

    def _before(self, number: int) -> str:
        return "" if number == 0 else self._chain[number - 1]

    def _parted(self, number: int) -> bool:
        """Tell whether the compressed network gives something else than the original before a block."""
        return any(block < number for block in self.blocks)

    def _asked(self, number: int) -> str:
        """Return what a block's solutions are made from."""
        heads = self.blocks[number].attentions
        choices = {name: facts_of(choice, heads.get(name)) for name, choice in self._choices(number).items()}
        return digest_of([self._identity, self._before(number), choices, self.solved_by])

    def _choices(self, number: int) -> dict[str, LayerChoice]:
        return {name: self.choices[name] for name in self.blocks[number].methods}

    @property
    def _identity(self) -> str:
        return digest_of(dict(self.made_from))

    @property
    def _mark(self) -> Place:
        return self.root / UNFINISHED / TARGET / "sweep.json"

    def _left(self, number: int, *, compressed: bool) -> LeftInStore:
        return LeftInStore(self._stream(number, compressed=compressed), self.known.keys)

    def _drop_spent(self, number: int) -> None:
        for compressed in (True, False):
            self._stream(number, compressed=compressed).drop_spent()

    def _stream(self, number: int, *, compressed: bool) -> StoredStream:
        """Return what a block reads and writes of one of the two networks."""
        name = COMPRESSED if compressed else STREAM
        return StoredStream(
            self.root, TARGET, number, self.passes.places, self.made_from,
            name=name, since=min(self.blocks), compressed=self._chain,
        )  # fmt: skip
