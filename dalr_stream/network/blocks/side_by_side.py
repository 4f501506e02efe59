"""Several networks on their way through the blocks of one, and what they are asked in the end.

    for each block      its weights are read
        each network    what takes the place of this block in it is made; every batch is taken one block further
                        in the last block it is asked: how far its outputs are from the original's, how it scores

A network is the original up to the first of its blocks that differs, and goes on from what the original's gave there.
What is kept of the batches lies in a folder, of two blocks at most; killed, the same call goes on in that block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.errors import StoreError, UnsupportedLayerError
from dalr_stream.network.blocks.continued import ContinuedNetwork, CountedPass, KnownCalls, NoOutputsYetError
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.resuming.given import UsedError
from dalr_stream.network.capture.resuming.stored_states import StoredStream
from dalr_stream.progress import Progress
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.json_record import RecordKind, read_record, write_record

_REACHED = RecordKind("networks side by side", 1, "run the same command")


@dataclass(frozen=True, slots=True)
class Variant:
    """A network with something else in the place of some pieces of the original; without any it is the original."""

    pieces: Collection[str] = ()
    made: Callable[[str], AbstractContextManager[nn.Module]] = lambda _: nullcontext(nn.Identity())
    """Gives what takes the place of one of them, while that is in memory: of none, it is never asked. What it refuses
    is the variant's outcome."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of each network in the end, and how it is called until then."""

    batches: Iterable[Any]
    """The same in every pass."""
    call: Callable[[nn.Module, Any], object]
    """Calls a network on one batch."""
    answer: Callable[[nn.Module, nn.Module], Any]
    """Calls a network, and the original beside it, on all batches, and returns what is asked."""


Outcome = list[Any] | UnsupportedLayerError
"""An answer to each question; or why there is no such network."""


@dataclass(slots=True)
class SideBySide:
    """Takes networks through the blocks of `model`."""

    model: nn.Module
    passes: BlockPasses
    pieces: Pieces
    folder: Path
    """Where what blocks give lies meanwhile."""
    progress: Progress
    title: str
    """What progress is called."""
    made_from: str | None = None
    """What decides the outcomes, in words: the same goes on where it was killed; without them it begins anew."""
    counted: Sequence[CountedPass] = ()
    """Of each pass, where somebody counts."""
    _calls: list[KnownCalls] = field(default_factory=list)
    _outcomes: list[Outcome] = field(default_factory=list)

    def outcomes(self, variants: Sequence[Variant], questions: Sequence[Question]) -> list[Outcome]:
        """Return what became of each network; every block is read once.

        Raises UnsupportedLayerError where batches go different ways through the network, or where what it gives has
        parts that an earlier block gave; FingerprintMismatchError where they are not the same in every pass.
        """
        self._outcomes = [[] for _ in variants]
        self._calls = [KnownCalls() for _ in questions]
        with uncached(self.model), self.progress.track(self.title, len(self.passes), "blocks") as advance:
            begin = self._reached()
            advance(begin)
            for number in range(begin, len(self.passes)):
                with self.pieces.present(self.passes.pieces[number]):
                    self._block(number, variants, questions)
                if number < self._last:
                    self._keep_reached(number)
                advance(1)
        self._drop()
        return self._outcomes

    def _block(self, number: int, variants: Sequence[Variant], questions: Sequence[Question]) -> None:
        for place in range(len(questions)):
            for stream in self._streams(number, place, variants):
                stream.drop_spent()
        originals = [self._network(number, place, None, {}) for place in range(len(questions))]
        if number < self._last:
            for question, network, calls in zip(questions, originals, self._calls, strict=True):
                _take_further(network, question, calls)
                calls.complete = True
        for which, variant in enumerate(variants):
            if isinstance(self._outcomes[which], list) and (number == self._last or self._since(variant) <= number):
                self._outcomes[which] = self._variant(number, which, variant, questions, originals)

    def _variant(
        self, number: int, which: int, variant: Variant, questions: Sequence[Question], originals: Sequence[nn.Module]
    ) -> Outcome:
        here = [piece for piece in self.passes.pieces[number] if piece in variant.pieces]
        with ExitStack() as stack:
            try:
                own = {piece: stack.enter_context(variant.made(piece)) for piece in here}
            except UnsupportedLayerError as error:
                return error
            answers: list[Any] = []
            for place, (question, original) in enumerate(zip(questions, originals, strict=True)):
                network = self._network(number, place, (which, self._since(variant)), own)
                if number < self._last:
                    _take_further(network, question, self._calls[place])
                else:
                    answers.append(self._answer(question, network, original))
                    self._calls[place].require_sound()
            return answers

    def _answer(self, question: Question, network: nn.Module, original: nn.Module) -> Any:
        try:
            return question.answer(network, original)
        except UsedError:
            raise UnsupportedLayerError(
                "blocks: the network gives what blocks before the last one give, its hidden states say, and block by "
                "block that is not kept to the end: let it give its last outputs alone, or run it whole"
            ) from None

    def _network(
        self, number: int, question: int, variant: tuple[int, int] | None, own: Mapping[str, nn.Module]
    ) -> ContinuedNetwork:
        counted = self.counted[number] if self.counted else None
        stream, calls = self._stream(number, question, variant), self._calls[question]
        return ContinuedNetwork(self.model, self.passes, number, stream, calls, own, counted)

    def _since(self, variant: Variant) -> int:
        """Return the first pass in which a network differs; of the original, one that is none."""
        passes = range(len(self.passes))
        return next((one for one in passes if not set(variant.pieces).isdisjoint(self.passes.pieces[one])), len(passes))

    @property
    def _last(self) -> int:
        return len(self.passes) - 1

    # --- on disk ---------------------------------------------------------------------------------------------------

    def _streams(self, number: int, question: int, variants: Sequence[Variant]) -> Iterator[StoredStream]:
        yield self._stream(number, question, None)
        for which, variant in enumerate(variants):
            yield self._stream(number, question, (which, self._since(variant)))

    def _stream(self, number: int, question: int, variant: tuple[int, int] | None) -> StoredStream:
        facts = {"made_from": self.made_from, "blocks": [list(block) for block in self.passes.blocks]}
        place = self.folder, f"question-{question}", number, self.passes.places, facts
        if variant is None:
            return StoredStream(*place)
        which, since = variant
        own = [f"network {which}"] * len(self.passes)
        return StoredStream(*place, name=f"@network-{which}", since=since, compressed=own)

    def _reached(self) -> int:
        """Return the block to begin with; what another call left is removed."""
        with suppress(StoreError):  # none, damaged, or of another version
            kept = read_record(self._mark, _REACHED)
            if self.made_from is not None and kept["made_from"] == self._identity:
                self._calls = [KnownCalls(dict(numbers), complete=True) for numbers in kept["calls"]]
                for which, words in kept["refused"].items():
                    self._outcomes[int(which)] = UnsupportedLayerError(words)
                for one, (samples, macs) in zip(self.counted, kept["counted"], strict=True):
                    one.samples, one.macs = samples, macs
                return int(kept["block"]) + 1
        self._drop()
        return 0

    def _keep_reached(self, block: int) -> None:
        if self.made_from is None:
            return
        refused = {
            str(which): str(outcome) for which, outcome in enumerate(self._outcomes) if not isinstance(outcome, list)
        }
        facts = {
            "made_from": self._identity,
            "block": block,
            "calls": [one.numbers for one in self._calls],
            "refused": refused,
            "counted": [[one.samples, one.macs] for one in self.counted],
        }
        write_record(self._mark, _REACHED, facts)

    @property
    def _identity(self) -> list[Any]:
        return [self.made_from, len(self._outcomes), [list(block) for block in self.passes.blocks]]

    @property
    def _mark(self) -> Path:
        return self.folder / "reached.json"

    def _drop(self) -> None:
        remove_folder(self.folder)


def _take_further(network: nn.Module, question: Question, calls: KnownCalls) -> None:
    """Take every batch of a question through a block."""
    for batch in question.batches:
        with suppress(NoOutputsYetError):
            question.call(network, batch)
        calls.require_sound()
