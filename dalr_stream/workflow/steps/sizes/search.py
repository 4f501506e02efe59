"""Sizes of several layers together, found by trying them on validation (DALR, section 5.3 and Table 10).

At each step every layer's next smaller size is tried with the others as they are, and the best of these networks is
kept; the search ends when each of them scores too much worse than the uncompressed network. Solutions hold every size,
so a step costs its evaluations and nothing else.

Equal scores go to the network with fewer parameters, then to the first layer: the same scores, the same sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dalr_stream.network.surgery.compress import Replacement, parameter_count
from dalr_stream.progress import Progress
from dalr_stream.report.records.scale import Scale
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.steps.named_sizes import at_size
from dalr_stream.workflow.steps.scores.scoring import Evaluator, Score

TOLERANCE = 1e-9
"""Of a drop: 0.98 - 0.97 is a little more than 0.01."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One network of a step: a layer at its next smaller size, the others as the steps before left them."""

    layer: str
    size: int
    parameters: int
    """Of the whole network."""
    score: float


@dataclass(frozen=True, slots=True)
class SearchStep:
    """What was tried at one step; `kept` is the layer of the best trial, None where all dropped too much."""

    trials: tuple[Trial, ...]
    kept: str | None


@dataclass(frozen=True, slots=True)
class Search:
    """Every step of a search, in order."""

    baseline: float
    """Score of the uncompressed network."""
    max_drop: float
    """How much worse a network may score."""
    steps: tuple[SearchStep, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes found; a layer that is not named stays as it is."""
        return {trial.layer: trial.size for step in self.steps for trial in step.trials if trial.layer == step.kept}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Search:
        """Return the search that `dataclasses.asdict` turned into plain values."""
        steps = (SearchStep(tuple(Trial(**trial) for trial in step["trials"]), step["kept"]) for step in plain["steps"])
        return cls(plain["baseline"], plain["max_drop"], tuple(steps))


class Tries(Protocol):
    """Scores networks on validation, whole or block by block."""

    @property
    def scale(self) -> Scale:
        """Of the score."""

    @property
    def progress(self) -> Progress:
        """Receives what is found."""

    def baseline(self) -> float:
        """Return the score of the uncompressed network."""

    def tried(self, networks: Sequence[Mapping[str, int]]) -> Iterator[tuple[int, float]]:
        """Yield the parameters of each network, whole, and its score; a network is given by its layers' sizes."""


@dataclass(slots=True)
class InMemory:
    """Builds each network whole: `Tries`. What comes before the first of the layers is run once."""

    evaluator: Evaluator
    solutions: Mapping[str, Solution]
    """Layer name -> its solution, every size of it."""
    _score: Score = field(init=False)

    def __post_init__(self) -> None:
        self._score = self.evaluator.from_layers(*self.solutions)

    @property
    def scale(self) -> Scale:
        """That of the evaluator's metric."""
        return self.evaluator.score.scale

    @property
    def progress(self) -> Progress:
        """That of the evaluator."""
        return self.evaluator.progress

    def baseline(self) -> float:
        """Return the score of the uncompressed network."""
        return self._score(self.evaluator.model)

    def tried(self, networks: Sequence[Mapping[str, int]]) -> Iterator[tuple[int, float]]:
        """Build and score one network after the other."""
        for sizes in networks:
            yield self._tried(sizes)

    def _tried(self, sizes: Mapping[str, int]) -> tuple[int, float]:
        replacements: dict[str, Replacement] = {
            name: at_size(self.solutions[name], size, name, self.evaluator.restore_ridge)
            for name, size in sizes.items()
        }
        small = self.evaluator.compressed(replacements)
        return parameter_count(small), self._score(small)


def joint_search(tries: Tries, candidates: Mapping[str, Sequence[int]], max_drop: float) -> Search:
    """Return the search from the uncompressed network down.

    Parameters
    ----------
    tries
        Scores networks on validation.
    candidates
        Layer name -> the sizes it may have. A list that is empty leaves the layer as it is.
    max_drop
        How much worse than the uncompressed network a network may score: in units of the score where it is a share, and
        as a share of the uncompressed network's score where it is not; see `Scale`.
    """
    baseline, scale = tries.baseline(), tries.scale
    worst = scale.worst(baseline, max_drop)
    tries.progress.note(f"search: uncompressed {baseline:.4f}, {scale.at_least} {worst:.4f} is asked for")
    ahead = {layer: sorted(sizes) for layer, sizes in candidates.items()}
    sizes: dict[str, int] = {}
    steps: list[SearchStep] = []
    with tries.progress.track("search", None, "networks") as advance:
        while any(ahead.values()):
            layers = [layer for layer in ahead if ahead[layer]]
            trials = []
            for layer, (parameters, score) in zip(
                layers, tries.tried([{**sizes, layer: ahead[layer][-1]} for layer in layers]), strict=True
            ):
                trials.append(Trial(layer, ahead[layer][-1], parameters, score))
                advance(1)
            best = max(trials, key=lambda trial: (scale.goodness(trial.score), -trial.parameters))
            good = scale.loss(worst, best.score) <= TOLERANCE
            steps.append(SearchStep(tuple(trials), best.layer if good else None))
            tries.progress.note(f"search: step {len(steps)}: {_in_words(steps[-1])}")
            if not good:
                break
            sizes[best.layer] = ahead[best.layer].pop()
    return Search(baseline, max_drop, tuple(steps))


def _in_words(step: SearchStep) -> str:
    tried = ", ".join(f"{trial.layer} at {trial.size} {trial.score:.4f}" for trial in step.trials)
    return f"{tried}: {f'{step.kept} kept' if step.kept else 'all drop too much, done'}"
