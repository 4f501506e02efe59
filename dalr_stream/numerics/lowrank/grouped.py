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

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.lowrank.factors import LowRankFactors, LowRankLayer
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.rows.streams import GROUP
from dalr_stream.numerics.statistics.grouped import GroupedMoments
from dalr_stream.numerics.types import Vector


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
    """Every rank of the decompositions of all groups of a convolution.

    Attributes
    ----------
    parts
        The factors of each group, all of one shape, rank and method.
    """

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

    @property
    def objective(self) -> Vector:
        """(K + 1,): the method's own objective on its training moments, all groups together."""
        return np.asarray(sum(part.objective for part in self.parts))

    def errors(self, moments: GroupedMoments) -> Vector:
        """(K + 1,): squared error summed over the rows of `moments`, all groups together; each group has its own."""
        pairs = zip(self.parts, moments.parts, strict=True)
        return np.asarray(sum(part.errors(group) for part, group in pairs))

    def losses(self, moments: GroupedMoments, gradients: GroupedMoments) -> Vector:
        """(K + 1,): nats for a sample, as `LowRankFactors.losses`, of each group by itself, all together."""
        groups = zip(self.parts, moments.parts, gradients.parts, strict=True)
        return np.asarray(sum(part.losses(*own) for part, *own in groups))

    def at_rank(self, k: int, *, layer: str | None = None, balanced: bool = False) -> GroupedPair:
        """Return what `LowRankFactors.at_rank` does, for each group; messages and their numbers are of one group."""
        group = None if layer is None else f"{layer}{GROUP}*"
        return GroupedPair(tuple(part.at_rank(k, layer=group, balanced=balanced) for part in self.parts))


Factors = LowRankFactors | GroupedFactors


def factors_of(parts: Sequence[LowRankFactors]) -> Factors:
    """Return the factors of a layer, of one part or of several groups."""
    return parts[0] if len(parts) == 1 else GroupedFactors(tuple(parts))
