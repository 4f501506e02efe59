"""How well compressed networks do: every method at every size, on the labelled test split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreDamagedError,
    StoreNotFoundError,
    UnsupportedLayerError,
)
from dalr_stream.network.blocks.scored import question_of
from dalr_stream.network.blocks.side_by_side import Question
from dalr_stream.network.capture.loaders import can_resume, most_samples
from dalr_stream.network.measure.accuracy import accuracy
from dalr_stream.network.measure.prefix import CACHE_BYTES, Cut, KeptBatches, PrefixCache
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.compress import Replacement, compress
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.progress import Progress
from dalr_stream.report.records.results import ScoreCurve, ScorePoint
from dalr_stream.report.records.scale import ACCURACY, Scale
from dalr_stream.storage.json_record import RecordKind, read_record, write_record
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.labelled_sections import LabelledSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import at_size

SCORES = RecordKind("scores", 1, "run evaluate")

T = TypeVar("T")
Metric = Callable[[nn.Module, Iterable[Any]], float]
Score = Callable[[nn.Module], float]
Curves = Mapping[str, tuple[ScoreCurve, ...]]
"""Layer name -> one curve a method."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """A metric on labelled batches: called with a network, its score."""

    metric: Metric
    """May do no more with a network than call it on one batch's inputs at a time."""
    batches: Iterable[Any]
    scale: Scale = ACCURACY
    """Direction and range of the metric: what lies outside is an error."""
    name: str = "metric"
    """What the metric goes by in messages."""

    def __call__(self, model: nn.Module) -> float:
        """Score a network by whole forward passes; raises InvalidInputError for a value outside the metric's range."""
        return self.checked(float(self.metric(model, self.batches)))

    def checked(self, value: float) -> float:
        """Return a value of the metric; raises InvalidInputError for one outside its range."""
        if not self.scale.holds(value):
            raise InvalidInputError(
                f"{self.name} gave {value:g}, which must be {self.scale.words}: state its range, range = [1, inf] of a "
                "perplexity say, and higher = false where less is better; or let it give what it says"
            )
        return value

    @property
    def question(self) -> Question:
        """What is asked of networks that go block by block."""
        return question_of(self.metric, self.batches, self.name)

    @property
    def samples(self) -> int:
        """How many it is on, at most, where the loader has a length: as many as the first batch has in each."""
        return most_samples(self.batches)

    def after(self, cut: Cut, limit_bytes: int) -> Score:
        """Return the score of networks that differ only after a cut: what comes before is run once, where it fits.

        Accuracy needs the labels alone beside what crosses the cut, so batches that are kept are not loaded again,
        where the loader can begin after them. A metric of one's own is given every batch as the loader gives it.
        """
        if self.metric is accuracy and can_resume(self.batches):
            batches = KeptBatches(cut, self.batches, limit_bytes)
            return lambda small: accuracy(cut.tail(small), batches)
        cache = PrefixCache(cut, limit_bytes)
        return lambda small: self(cache.attach(small))


def score_on(project: Project, key: str, section: LabelledSection) -> Scoring:
    """Return the score of a network on a section's batches, by its metric; `key` is the section's name.

    Score inside `importing_from`: the Python beside the run file may import as it goes.
    """
    named = section.metric != "accuracy"
    metric: Metric = project.code.metric(key, section) if named else accuracy
    return Scoring(metric, project.code.loader(key, section), section.scale, f"{key}.metric: '{section.metric}'")


def sizes_to_try(method: Method, shape: LayerShape, ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes at which a method is evaluated, ascending.

    Ranks that add no parameters, for factor pairs. For selections the same numbers of nodes, and the number that has
    as many parameters as each of those factor pairs. For heads those below their size that they may have.
    """
    if method.family is Family.HEADS:
        return tuple(sorted({size for size in ranks if size < shape.head_size and size % shape.head_step == 0}))
    useful = [rank for rank in ranks if rank <= shape.break_even_rank]
    if method.family is Family.LOW_RANK:
        return tuple(sorted(set(useful)))
    nodes = [size for size in ranks if size <= shape.outputs] + [shape.equal_parameters(rank) for rank in useful]
    return tuple(sorted(set(nodes)))


def networks_to_try(project: Project, network: nn.Module) -> int:
    """Return how many networks the [evaluate] section compares, besides those that are saved; any weights will do."""
    store = project.prospect(network)
    return sum(
        len(sizes_to_try(method, store.shape(layer), project.evaluate_section.ranks))
        for layer in project.layers_in(store)
        for method in project.methods(store, layer)
    )


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Scores a network compressed in one layer at a time, by every method at every size."""

    model: nn.Module
    ranks: tuple[int, ...]
    score: Scoring
    restore_ridge: float
    progress: Progress
    structure: Structure | None = None
    """Of the model; needed for selections and heads."""
    cache_bytes: int = CACHE_BYTES
    """What may be kept of what comes before."""
    heads: frozenset[str] = frozenset()
    """The output layers of attentions whose heads may get narrower."""
    said: set[str] = field(default_factory=set, repr=False)
    """What was noted already."""

    @classmethod
    def of(cls, project: Project, section: LabelledSection, score: Scoring, progress: Progress) -> Evaluator:
        """Return the evaluator of a project's network, by a section's ranks and cache."""
        ridge = project.config.solve.restore_ridge
        model, structure, cache = project.network, project.structure, project.cache_of(section)
        heads = frozenset(StoreView.open(project.store).heads if project.config.narrows else ())
        return cls(model, section.ranks, score, ridge, progress, structure, cache, heads)

    def compressed(self, replacements: Mapping[str, Replacement]) -> nn.Module:
        """Return the network with these replacements."""
        return compress(self.model, replacements, example=self.structure)

    def curves(
        self,
        store: StoreView,
        methods: Mapping[str, Sequence[Method]],
        scores: KeptScores,
        *,
        tuned: Callable[[str], Score] | None = None,
    ) -> dict[str, tuple[ScoreCurve, ...]]:
        """Return, for each layer, how each of its methods scores against size.

        Scores that are kept already are not found again. `tuned` gives the score of networks compressed in a layer
        where they are to be fine-tuned first.
        """
        title, from_layer = ("evaluate", self.from_layers) if tuned is None else ("fine-tune and evaluate", tuned)
        sizes = {
            (layer, method): sizes_to_try(method, store.shape(layer), self.ranks)
            for layer, applicable in methods.items()
            for method in applicable
        }
        drawn: dict[str, list[ScoreCurve]] = {layer: [] for layer in methods}
        with self.progress.track(title, sum(map(len, sizes.values())), "networks") as advance:
            for layer, applicable in methods.items():
                score = from_layer(layer) if any(sizes[layer, method] for method in applicable) else self.score
                for method in applicable:
                    solution = store.solutions(layer, [method])[method]
                    points = []
                    for size in sizes[layer, method]:
                        scored = partial(self._scored, score, layer, solution, size)
                        value = scores.once(f"{title} {layer} {method.value} {size}", scored)
                        points.append(_point(solution, size, store.shape(layer), value))
                        advance(1)
                    drawn[layer].append(ScoreCurve(method.value, tuple(points)))
        return {layer: tuple(curves) for layer, curves in drawn.items()}

    def _scored(self, score: Score, layer: str, solution: Solution, size: int) -> float:
        return score(self.compressed({layer: at_size(solution, size, layer, self.restore_ridge)}))

    def from_layers(self, *layers: str) -> Score:
        """Return the score of networks that differ only from the first of `layers` on."""
        try:
            cut = Cut(self.model, *(name for layer in layers for name in self.changed_with(layer)))
            cut.require_same(self.model, next(iter(self.score.batches)))
            return self.score.after(cut, self.cache_bytes)
        except UnsupportedLayerError as error:
            self.note_whole_passes(error)
            return self.score

    def changed_with(self, layer: str) -> tuple[str, ...]:
        """Return the modules that change when `layer` is compressed: selections narrow those before it, where tied.

        Raises UnsupportedLayerError where its heads may get narrower: their size is in what is parted, not in a module.
        """
        if layer in self.heads:
            raise UnsupportedLayerError(f"layer '{layer}': its heads may get narrower, which changes what lies between")
        return (layer,) if self.structure is None else self.structure.changed_with(module_name(layer))

    def note_whole_passes(self, error: UnsupportedLayerError) -> None:
        """Say why what comes before a layer is run for every network; once, not for each layer."""
        reason = f"evaluate: whole forward passes are run: {error}"
        if reason not in self.said:
            self.said.add(reason)
            self.progress.note(reason)


def _point(solution: Solution, size: int, shape: LayerShape, value: float) -> ScorePoint:
    if isinstance(solution, HeadFactors):
        left = shape.head_parameters(size)
        return ScorePoint(size, left, left + shape.outputs * shape.next_outputs, value)
    if isinstance(solution, ChannelSelection):
        return ScorePoint(size, None, shape.selection_pair_parameters(size), value)
    return ScorePoint(size, shape.factor_parameters(size), shape.factor_pair_parameters(size), value)


class KeptScores:
    """The scores found so far, so that an evaluation that was killed resumes after the last of them.

    One small file, replaced whole after each network. It belongs to one fingerprint, by its name, and goes when the
    evaluation is written. Scores are kept to the bit: JSON's numbers are read back as they were written.
    """

    def __init__(self, path: Path) -> None:
        """Read those of an interrupted evaluation, where there are some."""
        self._path = path
        try:
            self._known: dict[str, Any] = read_record(path, SCORES)
        except (StoreNotFoundError, StoreDamagedError, FingerprintMismatchError):  # they are found again
            self._known = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, what: str) -> bool:
        return what in self._known

    def known(self, what: str) -> Any:
        """Return what is kept; raises KeyError where nothing is."""
        return self._known[what]

    def once(self, what: str, score: Callable[[], T]) -> T:
        """Return what is kept of `what`, a score or plain values, or find it and keep it."""
        if what not in self._known:
            self.keep(what, score())
        found: T = self._known[what]
        return found

    def keep(self, what: str, value: Any) -> None:
        """Keep a score, or plain values."""
        self._known[what] = value
        write_record(self._path, SCORES, self._known)
