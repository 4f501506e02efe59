"""A convolution of several groups as one layer: its matrix is block diagonal, and a group is a block.

A group reads its own channels and gives its own, so rows, moments and factors are each group's, and blocks know nothing
of one another. What is decided is decided for the layer: one rank for all of its groups, whose squared errors and
energies add up. The parts stand in the order of the groups; a plain record is its own only part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.lowrank.factors import Diagnostics, LowRankFactors, LowRankLayer
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.rows.streams import GROUP
from dalr_stream.numerics.statistics.moments import Moments

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class GroupedMoments:
    """Moments of rows of which only those of each group with itself are known."""

    parts: tuple[Moments, ...]

    @property
    def count(self) -> int:
        """Rows: every group has one of each."""
        return self.parts[0].count

    @property
    def samples(self) -> int:
        """Samples those rows came from."""
        return self.parts[0].samples

    @property
    def features(self) -> int:
        """Width of the rows, all groups together."""
        return sum(part.features for part in self.parts)

    @property
    def nonzero(self) -> NDArray[np.int64]:
        """Rows in which each feature is not zero, group after group."""
        return np.concatenate([part.nonzero for part in self.parts])

    @property
    def active_rate(self) -> Vector:
        """Share of rows in which each feature is not zero, group after group."""
        return np.concatenate([part.active_rate for part in self.parts])

    def __add__(self, other: GroupedMoments) -> GroupedMoments:
        """Moments of both sets of rows."""
        return GroupedMoments(tuple(one + two for one, two in zip(self.parts, other.parts, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class GroupedPair:
    """Two small layers for each group, all of one rank."""

    parts: tuple[LowRankLayer, ...]

    @property
    def rank(self) -> int:
        """Rank k of each group."""
        return self.parts[0].rank

    @property
    def parameters(self) -> int:
        """Weights of all groups."""
        return sum(part.parameters for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedFactors:
    """Every rank of the decompositions of all groups."""

    parts: tuple[LowRankFactors, ...]

    def __post_init__(self) -> None:
        if len({(part.weight.shape, part.max_rank, part.method) for part in self.parts}) != 1:
            raise InvalidInputError("factors of groups: all must be of one shape, one rank and one method")

    @property
    def method(self) -> Method:
        """The method, one for all."""
        return self.parts[0].method

    @property
    def outputs(self) -> int:
        """Outputs m of all groups."""
        return sum(part.outputs for part in self.parts)

    @property
    def inputs(self) -> int:
        """Inputs d of each group."""
        return self.parts[0].inputs

    @property
    def max_rank(self) -> int:
        """K of each group."""
        return self.parts[0].max_rank

    @property
    def break_even_rank(self) -> int:
        """Largest rank of each group that adds no parameters."""
        return self.parts[0].break_even_rank

    @property
    def diagnostics(self) -> Diagnostics:
        """Those of the first group, with the largest numerical rank of all and the notes of all, each once."""
        facts = [part.diagnostics for part in self.parts]
        ranks = [fact.numerical_rank for fact in facts if fact.numerical_rank is not None]
        notes = dict.fromkeys(note for fact in facts for note in fact.notes)
        return dataclasses.replace(facts[0], numerical_rank=max(ranks, default=None), notes=tuple(notes))

    def at_rank(self, k: int, *, layer: str | None = None, balanced: bool = False) -> GroupedPair:
        """Return what `LowRankFactors.at_rank` does, for each group; messages and their figures are of one group."""
        group = None if layer is None else f"{layer}{GROUP}*"
        return GroupedPair(tuple(part.at_rank(k, layer=group, balanced=balanced) for part in self.parts))


Factors = LowRankFactors | GroupedFactors
InputMoments = Moments | GroupedMoments


def moments_of(parts: Sequence[Moments]) -> InputMoments:
    """Return the moments of a layer, of one part or of several groups."""
    return parts[0] if len(parts) == 1 else GroupedMoments(tuple(parts))


def factors_of(parts: Sequence[LowRankFactors]) -> Factors:
    """Return the factors of a layer, of one part or of several groups."""
    return parts[0] if len(parts) == 1 else GroupedFactors(tuple(parts))
