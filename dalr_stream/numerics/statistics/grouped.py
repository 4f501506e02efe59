"""Moments of a layer that reads its features in groups: those of each group with itself, in the order of the groups.

Each group of a convolution reads its own channels, so moments between groups are never needed. Plain moments count as
one group: whoever goes by `parts` handles both alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Vector


@dataclass(frozen=True, slots=True, eq=False)
class GroupedMoments:
    """Moments of rows of which only those of each group with itself are known.

    Attributes
    ----------
    parts
        The moments of each group, in the order of the groups.
    """

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


InputMoments = Moments | GroupedMoments


def moments_of(parts: Sequence[Moments]) -> InputMoments:
    """Return the moments of a layer, of one part or of several groups."""
    return parts[0] if len(parts) == 1 else GroupedMoments(tuple(parts))
