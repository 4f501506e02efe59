"""The ridge of a regression, relative or absolute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.types import Vector


@dataclass(frozen=True, slots=True)
class Ridge:
    """The lambda of Eq. 7, told in one of two ways. Make one with `Ridge.relative` or `Ridge.absolute`."""

    value: float
    is_relative: bool

    def __post_init__(self) -> None:
        if not 0.0 <= self.value < np.inf:
            raise InvalidInputError(f"ridge must be a finite number >= 0, got {self.value}")

    @classmethod
    def relative(cls, share: float) -> Ridge:
        """`share` x the mean diagonal of the matrix being solved: means the same for any number of samples."""
        return cls(float(share), is_relative=True)

    @classmethod
    def absolute(cls, value: float) -> Ridge:
        """`value` itself, on unnormalised sums, as in the authors' code: its meaning changes with n."""
        return cls(float(value), is_relative=False)

    @staticmethod
    def require(ridge: object) -> None:
        """Raise InvalidInputError for a bare number, which might mean either."""
        if not isinstance(ridge, Ridge):
            raise InvalidInputError(f"ridge must be a Ridge, got {ridge!r}: Ridge.relative({ridge!r})")

    def value_for(self, diagonal: Vector) -> float:
        """Return the lambda to add to a matrix with this `diagonal` (d,)."""
        return self.of_mean(float(np.mean(diagonal)))

    def of_mean(self, mean: float) -> float:
        """Return the lambda to add to a matrix whose mean diagonal is `mean`."""
        return self.value * mean if self.is_relative else self.value


DEFAULT_RIDGE = Ridge.relative(1e-3)
