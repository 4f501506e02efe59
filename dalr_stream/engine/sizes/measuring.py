"""What networks of some sizes are measured at: each built whole, one after the other, or all of them by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.numerics.methods import Family
from dalr_stream.progress import Progress, Silent

Sizes = Mapping[str, tuple[Family, int]]
"""Layer -> its form and size; layers as they are left out."""
Networks = Callable[[Sizes], nn.Module]
"""Gives the network with layers of these sizes."""
Measure = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class SizedNetwork:
    """A network that is to be measured."""

    words: str
    """By which an error names it."""
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network was measured at."""

    distance: float
    """Of its outputs from the original's."""
    score: float | None = None
    """Where one was asked for, and there is one."""


Outcome = Measured | UnsupportedLayerError
"""What a network was measured at; or why there cannot be one of these sizes."""


class MeasureAll(Protocol):
    """Measures networks, and follows that as progress, by a title."""

    def __call__(self, title: str, networks: Sequence[SizedNetwork], *, scored: bool) -> Iterator[Outcome]:
        """Yield an outcome for each, in their order; raises NonFiniteError, which names the network.

        With a score where `scored`, and there is one.
        """


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Builds each network, whole, when it is asked for: a `MeasureAll`."""

    networks: Networks
    distance: Measure
    score: Measure | None = None
    progress: Progress = field(default_factory=Silent)

    def __call__(self, title: str, networks: Sequence[SizedNetwork], *, scored: bool) -> Iterator[Outcome]:
        """Yield an outcome for each; no more than one network is there at a time."""
        with self.progress.track(title, len(networks), "networks") as advance:
            for one in networks:
                yield self._measured(one, scored=scored)
                advance(1)

    def _measured(self, one: SizedNetwork, *, scored: bool) -> Outcome:
        try:
            small = self.networks(one.sizes)
        except UnsupportedLayerError as error:
            return error
        return measured(small, one.words, self.distance, self.score if scored else None)


def measured(small: nn.Module, words: str, distance: Measure, score: Measure | None) -> Measured:
    """Return what a network is measured at; raises NonFiniteError, which names it by `words`."""
    with named(words):
        gap, value = distance(small), None if score is None else score(small)
    return Measured(gap, None if score is None else number_of(value, words))


def number_of(score: object, words: str) -> float:
    """Return a score; raises InvalidInputError where it is no number, NonFiniteError for NaN, which has no place."""
    try:
        value = float(score)  # type: ignore[arg-type]  # whatever a function of the user's returns
    except (TypeError, ValueError):
        raise InvalidInputError(f"{words}: the score must be a number, got {score!r}") from None
    if math.isnan(value):
        raise NonFiniteError(f"{words}: the score must be a number, got nan")
    return value


@contextmanager
def named(what: str) -> Iterator[None]:
    """Say which network's outputs are not finite."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{what}: {error}") from None
