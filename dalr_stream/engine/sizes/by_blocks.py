"""Networks of some sizes measured by blocks: all of them and the original go through each block together.

The original's outputs are there in the last block too, where distances are measured. What was measured is kept where
the caller says what it was made from: killed, the same call goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.sizes.candidates import Candidates
from dalr_stream.engine.sizes.measuring import MeasureAll, Measured, Outcome, SizedNetwork, Sizes, named, number_of
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.errors import NonFiniteError, StoreError, UnsupportedLayerError
from dalr_stream.network.blocks.changed_piece import Cut
from dalr_stream.network.blocks.passes import Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.side_by_side import Question, Variant
from dalr_stream.network.capture.batches import call, inputs_copied
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.json_record import RecordKind, digest_of, read_record, write_record

_MEASURED = RecordKind("measured networks", 1, "run compress")


@dataclass(frozen=True, slots=True)
class ScoreAsked:
    """A score, where there is one beside the distance."""

    question: Question
    samples: int = 0
    """That it is taken on, about."""
    checked: Callable[[float], float] = float
    """Raises InvalidInputError for a value that it cannot have."""


@dataclass
class ByBlocks:
    """Takes networks through the blocks of `model` together: a `Bench`."""

    model: nn.Module
    distance: OutputDistance
    folder: Path
    """Where what blocks give lies meanwhile, and what was measured."""
    blocks: Blocks = True
    score: ScoreAsked | None = None
    higher: bool = True
    progress: Progress = field(default_factory=Silent)
    made_from: str | None = None
    """What decides solutions and samples, in words; None to keep nothing."""

    @cached_property
    def candidates(self) -> Candidates:
        """What takes networks through the blocks."""
        samples = self.distance.samples + (0 if self.score is None else self.score.samples)
        return Candidates(self.model, self.distance.batches[0], samples, self.folder, self.blocks)

    def at_once(self, menu: Menu) -> MeasureAll:
        """Return what measures networks of a menu together."""
        return partial(self._measure, menu)

    def in_turn(self, network: nn.Module | None, words: str) -> Measured:
        """Measure a network of the same blocks, each compressed and on disk."""
        pieces = self.candidates.pieces.names
        variant = Variant() if network is None else Variant(pieces, partial(_of_another, network))
        (outcome,) = self._outcomes([(words, variant)], Silent(), words, None, scored=True)
        if isinstance(outcome, UnsupportedLayerError):
            raise outcome
        return outcome

    def _measure(self, menu: Menu, title: str, networks: Sequence[SizedNetwork], *, scored: bool) -> Iterator[Outcome]:
        known = self._known()
        keys = [digest_of([self.made_from, menu.words, _plain(menu, one), scored]) for one in networks]
        left = [(key, one) for key, one in zip(keys, networks, strict=True) if key not in known]
        for group in self.candidates.groups(left):
            wanted = [(one.words, self._variant(menu, one)) for _, one in group]
            made_from = None if self.made_from is None else digest_of([key for key, _ in group])
            outcomes = self._outcomes(wanted, self.progress, title, made_from, scored=scored)
            known |= {key: outcome for (key, _), outcome in zip(group, outcomes, strict=True)}
            self._keep(known)
        yield from (known[key] for key in keys)

    def _outcomes(
        self,
        wanted: Sequence[tuple[str, Variant]],
        progress: Progress,
        title: str,
        made_from: str | None,
        *,
        scored: bool,
    ) -> list[Outcome]:
        score = self.score if scored else None
        questions = [distance_asked(self.distance, self.model), *([] if score is None else [score.question])]
        variants = [variant for _, variant in wanted]
        found: list[Outcome] = []
        outcomes = self.candidates.outcomes(variants, questions, progress, title, made_from)
        for (words, _), outcome in zip(wanted, outcomes, strict=True):
            found.append(outcome if isinstance(outcome, UnsupportedLayerError) else _measured(words, outcome, score))
        return found

    def _variant(self, menu: Menu, one: SizedNetwork) -> Variant:
        return self.candidates.variant(cuts_of(menu, one.sizes))

    def _known(self) -> dict[str, Outcome]:
        if self.made_from is None:
            return {}
        try:
            kept = read_record(self._record, _MEASURED)
        except StoreError:  # none, damaged, or of another version
            return {}
        return {
            key: UnsupportedLayerError(one) if isinstance(one, str) else Measured(*one) for key, one in kept.items()
        }

    def _keep(self, known: Mapping[str, Outcome]) -> None:
        if self.made_from is not None:
            plain = {
                key: [one.distance, one.score] if isinstance(one, Measured) else str(one) for key, one in known.items()
            }
            write_record(self._record, _MEASURED, plain)

    @property
    def _record(self) -> Path:
        return self.folder / "measured.json"


def cuts_of(menu: Menu, sizes: Sizes) -> dict[str, Cut]:
    """Return what takes the place of each layer, cut when its block is there."""
    at_size = menu.solutions.at_size
    return {layer: Cut(family, partial(at_size, layer, family, size)) for layer, (family, size) in sizes.items()}


def _plain(menu: Menu, one: SizedNetwork) -> list[Any]:
    return [[layer, menu.method(layer, family).value, size] for layer, (family, size) in one.sizes.items()]


def distance_asked(distance: OutputDistance, model: nn.Module) -> Question:
    """Return what a distance asks of networks that `model` may become: it, or the error that it is not finite.

    Where another network's outputs are the reference, that one is run whole for them.
    """

    def take_further(network: nn.Module, batch: Any) -> None:
        call(network, inputs_copied(batch))

    def answer(network: nn.Module, original: nn.Module) -> float | NonFiniteError:
        try:
            return distance.between(original if distance.model is model else distance.model, network)
        except NonFiniteError as error:
            return error

    return Question(distance.batches, take_further, answer)


def _measured(words: str, answers: Sequence[Any], score: ScoreAsked | None) -> Measured:
    with named(words):
        for answer in answers:
            if isinstance(answer, NonFiniteError):
                raise answer
    return Measured(answers[0], None if score is None else score.checked(number_of(answers[1], words)))


@contextmanager
def _of_another(network: nn.Module, piece: str) -> Iterator[nn.Module]:
    """Give a piece of another network, with its numbers."""
    with Pieces.of(network).present([piece]):
        yield network.get_submodule(piece)
