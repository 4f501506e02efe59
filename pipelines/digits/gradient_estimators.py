"""Which gradients, how many, and which ridges: weighted factors of eight dense layers, with jackknife bars.

    python pipelines/digits/gradient_estimators.py [SEED ...]

The dense stack of `sequential_gain.py`, every layer but the last factored at a tenth of its weights, all at once, from
the 1,000 digits that it was trained on. What is measured is the accuracy on the test digits. A bar is the jackknife's
standard error for one network: inputs and gradients without one of ten shards of the digits each time. One thing
differs from the defaults in each row: random vectors, one a sample, relative ridges of 1e-3 and 1e-2.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

import dalr_stream as ds
from dalr_stream.network import Replacement, accuracy
from sequential_gain import Case, deeper, dense_stack

SHARE, SHARDS = 0.1, 10
FOLDING = ds.Folding(ds.HoldoutRule(0.0), shards=SHARDS)
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
NAMES = {"vectors": "random vectors", "sampled": "sampled labels", "labels": "true labels"}
MomentsOf = Callable[[str], ds.Moments]
"""The moments of a stream: of all digits, or without a shard."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How factors are weighted."""

    words: str
    gradients: ds.GradientRule | None = field(default_factory=ds.GradientRule)
    """None for factors that are not weighted."""
    ridge: float | str = 1e-3
    gradient_ridge: float | str = 1e-2


@dataclass(frozen=True)
class Known:
    """A trained network, and what was accumulated of it by one rule."""

    case: Case
    rule: ds.GradientRule | None

    @cached_property
    def statistics(self) -> ds.Statistics:
        """Inputs and gradients of every layer but the last, in shards."""
        names = self.case.names[:-1]
        layers = ds.watch(self.case.model, names, gradients=names if self.rule else ())
        return ds.accumulate(
            self.case.model, self.case.train, layers, rows=ds.RowRule(gradients=self.rule), folding=FOLDING
        )

    def without(self, shard: int) -> MomentsOf:
        """Return the moments of a stream without one of the shards."""
        shards = self.statistics.by_stream.shards
        return lambda stream: ds.numerics.merge_all([*shards[stream][:shard], *shards[stream][shard + 1 :]])

    def score(self, setting: Setting, moments: MomentsOf) -> float:
        """Return the accuracy on the test digits of the network that is compressed from some moments."""
        small = ds.compress(
            self.case.model, {name: self._pair(name, setting, moments) for name in self.case.names[:-1]}
        )
        return accuracy(small, self.case.test)

    def _pair(self, name: str, setting: Setting, moments: MomentsOf) -> Replacement:
        layer = self.statistics[name]
        m, d = layer.weight.shape
        options: dict[str, Any] = {}
        if self.rule is not None:
            gradients = moments(f"{name}@gradients")
            options = {"variant": "weighted", "gradients": gradients, "gradient_ridge": setting.gradient_ridge}
        found = ds.dalr(layer.weight, layer.bias, moments(name), ridge=setting.ridge, **options)
        return found.at_rank(int(SHARE * m * d / (m + d)))

    def length(self) -> float:
        """Return a usual length of a digit's gradient: the root mean square, of the median layer."""
        streams = [f"{name}@gradients" for name in self.case.names[:-1]]
        squares = [self.statistics.moments(stream).second_moment.trace() for stream in streams]
        return math.sqrt(statistics.median(squares))


def settings(usual: float) -> Iterator[Setting]:
    """Yield what is compared; `usual` is a usual length of gradients, for those that are clipped."""
    yield Setting("not weighted", None)
    for estimator in ("vectors", "sampled"):
        for draws in (1, 2, 4, 8):
            rule = ds.GradientRule(estimator, draws=draws)
            yield Setting(f"{NAMES[estimator]}, {draws} a sample", rule)
    yield Setting("true labels", ds.GradientRule("labels"))
    for estimator, words in NAMES.items():
        for share, length in ((1.0, "usual"), (0.1, "a tenth of that")):
            rule = ds.GradientRule(estimator, clip=share * usual)
            yield Setting(f"{words}, no longer than {length}", rule)
    for ridge in (*RIDGES, "shrinkage"):
        yield Setting(f"random vectors, gradients' ridge {ridge}", gradient_ridge=ridge)
    for ridge in (*RIDGES, "shrinkage"):
        yield Setting(f"random vectors, inputs' ridge {ridge}", ridge=ridge)


def bar(scores: Sequence[float]) -> float:
    """Return the jackknife's standard error from the scores without each shard."""
    return math.sqrt((len(scores) - 1) * float(np.var(scores)))


def rows(cases: Sequence[Case]) -> Iterator[str]:
    """Yield the lines of the table in Markdown, each as soon as it is known: means over the cases."""
    known: dict[tuple[int, ds.GradientRule | None], Known] = {}

    def of(number: int, rule: ds.GradientRule | None) -> Known:
        return known.setdefault((number, rule), Known(cases[number], rule))

    usual = [of(number, ds.GradientRule()).length() for number in range(len(cases))]
    yield f"| {len(cases)} networks | accuracy | bar |"
    yield "|---|---:|---:|"
    for each in zip(*(settings(length) for length in usual), strict=True):
        scores, bars = [], []
        for number, setting in enumerate(each):
            one = of(number, setting.gradients)
            scores.append(one.score(setting, one.statistics.moments))
            bars.append(bar([one.score(setting, one.without(shard)) for shard in range(SHARDS)]))
        yield f"| {each[0].words} | {100 * statistics.mean(scores):.1f} % | {100 * statistics.mean(bars):.1f} |"


def main(seeds: Sequence[int]) -> None:
    """Print the table."""
    for line in rows([deeper(dense_stack, seed) for seed in seeds]):
        print(line, flush=True)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
