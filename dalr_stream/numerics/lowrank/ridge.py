"""The ridge of a regression, relative or absolute."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from dalr_stream.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Ridge:
    """The lambda of Eq. 7, made with `Ridge.relative` or `Ridge.absolute`.

    Wherever a ridge is asked for, a bare number is a relative one: `ridge=1e-3` is `ridge=Ridge.relative(1e-3)`.

    Attributes
    ----------
    value
        The share, or lambda itself, >= 0.
    is_relative
        Whether `value` is a share of the mean diagonal of the matrix being solved.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.Ridge.of(1e-3) == ds.Ridge.relative(1e-3)
    True
    """

    value: float
    is_relative: bool

    def __post_init__(self) -> None:
        if not 0.0 <= self.value < np.inf:
            raise InvalidInputError(f"ridge must be a finite number >= 0, got {self.value}")

    @classmethod
    def relative(cls, share: float) -> Ridge:
        """Return `share` x the mean diagonal of the matrix being solved: means the same for any number of samples."""
        return cls(float(share), is_relative=True)

    @classmethod
    def absolute(cls, value: float) -> Ridge:
        """Return `value` itself, on unnormalised sums, as in the authors' code: its meaning changes with n."""
        return cls(float(value), is_relative=False)

    @classmethod
    def of(cls, ridge: Ridge | float) -> Ridge:
        """Return the ridge itself, or for a bare number the relative ridge of that share.

        Raises
        ------
        InvalidInputError
            For anything else, and for a number that is negative or not finite.
        """
        if isinstance(ridge, Ridge):
            return ridge
        if isinstance(ridge, bool) or not isinstance(ridge, Real):
            raise InvalidInputError(
                f"ridge must be a number, which is relative, or a Ridge, got {ridge!r}: 1e-3 is Ridge.relative(1e-3)"
            )
        return cls.relative(float(ridge))

    def of_mean(self, mean: float) -> float:
        """Return the lambda to add to a matrix whose mean diagonal is `mean`."""
        return self.value * mean if self.is_relative else self.value


DEFAULT_RIDGE = Ridge.relative(1e-3)
