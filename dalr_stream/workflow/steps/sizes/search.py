"""Sizes of several layers together, found by trying them on validation (DALR, section 5.3 and Table 10).

At each step every layer's next smaller size is tried with the others as they are, and the best of these networks is
kept; the search ends when each of them scores too much worse than the uncompressed network. Solutions hold every size,
so a step costs its evaluations and nothing else, and what comes before the first of the layers is run once.

Equal scores go to the network with fewer parameters, then to the first layer: the same scores, the same sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dalr_stream.network.surgery.compress import Replacement, parameter_count
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


def joint_search(
    evaluator: Evaluator,
    solutions: Mapping[str, Solution],
    candidates: Mapping[str, Sequence[int]],
    max_drop: float,
) -> Search:
    """Return the search from the uncompressed network down.

    Parameters
    ----------
    evaluator
        Scores networks on validation.
    solutions
        Layer name -> its solution, every size of it.
    candidates
        Layer name -> the sizes it may have. A list that is empty leaves the layer as it is.
    max_drop
        How much worse than the uncompressed network a network may score: in units of the score where it is a share, and
        as a share of the uncompressed network's score where it is not; see `Scale`.
    """
    score = evaluator.from_layers(*solutions)
    baseline = score(evaluator.model)
    scale = evaluator.score.scale
    worst = scale.worst(baseline, max_drop)
    evaluator.progress.note(f"search: uncompressed {baseline:.4f}, {scale.at_least} {worst:.4f} is asked for")
    ahead = {layer: sorted(sizes) for layer, sizes in candidates.items()}
    sizes: dict[str, int] = {}
    steps: list[SearchStep] = []
    with evaluator.progress.track("search", None, "networks") as advance:
        while any(ahead.values()):
            trials = []
            for layer in [layer for layer in ahead if ahead[layer]]:
                trials.append(_try(evaluator, solutions, {**sizes, layer: ahead[layer][-1]}, layer, score))
                advance(1)
            best = max(trials, key=lambda trial: (scale.goodness(trial.score), -trial.parameters))
            good = scale.loss(worst, best.score) <= TOLERANCE
            steps.append(SearchStep(tuple(trials), best.layer if good else None))
            evaluator.progress.note(f"search: step {len(steps)}: {_in_words(steps[-1])}")
            if not good:
                break
            sizes[best.layer] = ahead[best.layer].pop()
    return Search(baseline, max_drop, tuple(steps))


def _try(
    evaluator: Evaluator, solutions: Mapping[str, Solution], sizes: Mapping[str, int], layer: str, score: Score
) -> Trial:
    replacements: dict[str, Replacement] = {
        name: at_size(solutions[name], size, name, evaluator.restore_ridge) for name, size in sizes.items()
    }
    small = evaluator.compressed(replacements)
    return Trial(layer, sizes[layer], parameter_count(small), score(small))


def _in_words(step: SearchStep) -> str:
    tried = ", ".join(f"{trial.layer} at {trial.size} {trial.score:.4f}" for trial in step.trials)
    return f"{tried}: {f'{step.kept} kept' if step.kept else 'all drop too much, done'}"
