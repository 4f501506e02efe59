"""The ridge of a regression: relative, absolute, or the one that shrinkage to a multiple of I amounts to.

A relative ridge is a share of the mean second moment of the features. A single feature of a thousand times the others'
scale, as transformers have them, would make that mean its own: a ridge of 1e-3 of it is eight times the others' moments
at 128 features, and shrinks all of them to nothing. So no feature counts more than `MOST_OF_MEDIAN` times the median.

Shrinkage asks the sample itself how far S can be trusted: (1 - rho) S + rho (tr S / d) I is nearest to the true second
moment at a rho that n, d, tr(S) and tr(S^2) decide (the oracle approximating estimator, for rows that are normal):

    rho = min(1, ((1 - 2/d) tr(S^2) + tr(S)^2) / ((n + 1 - 2/d) (tr(S^2) - tr(S)^2 / d)))

and up to scale that is S + lambda I with lambda = rho / (1 - rho) tr(S) / d. n counts samples: rows of one are alike.

Source of shrinkage: Chen, Wiesel, Eldar and Hero, Shrinkage algorithms for MMSE covariance estimation, IEEE
Transactions on Signal Processing 58 (2010), Eq. 23.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.psd import EPSILON
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Indices, Vector

SHRINKAGE = "shrinkage"
"""The name of that ridge, where a number could stand."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """The lambda of Eq. 7, made with `Ridge.relative`, `Ridge.absolute` or `Ridge.shrinkage`.

    Wherever a ridge is asked for, a bare number is a relative one: `ridge=1e-3` is `ridge=Ridge.relative(1e-3)`, and
    `ridge="shrinkage"` is `Ridge.shrinkage()`.

    Attributes
    ----------
    value
        The share, or lambda itself, >= 0.
    is_relative
        Whether `value` is a share of the mean diagonal of the matrix being solved.
    is_shrinkage
        Whether the moments themselves decide; `value` is 0 then, and means nothing.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.Ridge.of(1e-3) == ds.Ridge.relative(1e-3)
    True
    """

    value: float
    is_relative: bool
    is_shrinkage: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.value < np.inf:
            raise InvalidInputError(f"ridge must be a finite number >= 0, got {self.value}")

    @classmethod
    def relative(cls, share: float) -> Ridge:
        """Return `share` x the mean diagonal of the matrix being solved: means the same for any number of samples.

        In that mean no feature counts more than `MOST_OF_MEDIAN` times the median of those that vary.
        """
        return cls(float(share), is_relative=True)

    @classmethod
    def absolute(cls, value: float) -> Ridge:
        """Return `value` itself, on unnormalised sums, as in the authors' code: its meaning changes with n."""
        return cls(float(value), is_relative=False)

    @classmethod
    def shrinkage(cls) -> Ridge:
        """Return the ridge by which the sample's own size and spread shrink S to a multiple of I: nothing to tune."""
        return cls(0.0, is_relative=False, is_shrinkage=True)

    @classmethod
    def of(cls, ridge: Ridge | float | str) -> Ridge:
        """Return the ridge itself, for a bare number the relative ridge of that share, "shrinkage" by its name.

        Raises
        ------
        InvalidInputError
            For anything else, and for a number that is negative or not finite.
        """
        if isinstance(ridge, Ridge):
            return ridge
        if ridge == SHRINKAGE:
            return cls.shrinkage()
        if isinstance(ridge, bool) or not isinstance(ridge, Real):
            raise InvalidInputError(
                f"ridge must be a number, which is relative, or a Ridge, got {ridge!r}: 1e-3 is Ridge.relative(1e-3), "
                f"'{SHRINKAGE}' is Ridge.shrinkage()"
            )
        return cls.relative(float(ridge))

    def of_moments(self, moments: Moments, centre: Vector) -> float:
        """Return the lambda to add to the scatter about `centre`. Cost: d^2 operations for shrinkage."""
        diagonal = moments.products.diagonal(centre)
        return self.of_matrix(diagonal, lambda: moments.squares_about(centre), moments.samples)

    def of_matrix(self, diagonal: Vector, squares: Callable[[], float], samples: int) -> float:
        """Return the lambda to add to a matrix of this diagonal, from `samples`; `squares` gives tr(S^2)."""
        if not self.is_shrinkage:
            return self.of_diagonal(diagonal)
        trace, d = float(diagonal.sum()), diagonal.size
        rho = min(shrinkage_share(trace, squares(), samples, d), MOST_SHRINKAGE)
        return rho / (1.0 - rho) * trace / d

    def of_diagonal(self, diagonal: Vector) -> float:
        """Return the lambda to add to a matrix of this diagonal."""
        return self.of_scale(float(_bounded(diagonal).mean()))

    def of_scale(self, scale: float) -> float:
        """Return the lambda to add to a matrix of which no more is known than the scale of its diagonal."""
        if self.is_shrinkage:
            raise InvalidInputError("ridge 'shrinkage' needs the moments of the layer's inputs: give a number here")
        return self.value * scale if self.is_relative else self.value


MOST_SHRINKAGE = 1.0 - 1e-6
"""A rho of 1 would be an infinite ridge; at this one lambda is a million times the mean moment."""


def shrinkage_share(trace: float, squares: float, samples: int, features: int) -> float:
    """Return rho in 0..1 from tr(S), tr(S^2), n and d (Chen et al. 2010, Eq. 23); 0 where S is a multiple of I.

    The units of S do not matter: rho is the same for sums and for means.
    """
    spread = squares - trace**2 / features
    if spread <= EPSILON * features * squares:
        return 0.0
    part = 2.0 / features
    return min(((1.0 - part) * squares + trace**2) / ((samples + 1.0 - part) * spread), 1.0)


DEFAULT_RIDGE = Ridge.relative(1e-3)
MOST_OF_MEDIAN = 1000.0
"""Trained networks are far below where no channel stands out, 6 and 3 in those of pipelines/digits/default_ridge.py,
and channels that do are far beyond: a thousand times the scale is a million times the moment."""
_SHOWN = 3


def outlying_features(diagonal: Vector) -> Indices:
    """Return the features that are beyond `MOST_OF_MEDIAN` times the median, the largest first."""
    beyond = np.flatnonzero(diagonal > _most(diagonal))
    return beyond[np.argsort(-diagonal[beyond], kind="stable")]


def outliers_in_words(diagonal: Vector) -> str:
    """Name the outlying features and what is done about them; empty where there are none."""
    found = outlying_features(diagonal)
    if not found.size:
        return ""
    times = diagonal[found[:_SHOWN]] / (_most(diagonal) / MOST_OF_MEDIAN)
    listed = ", ".join(f"{number} ({ratio:.1e} times)" for number, ratio in zip(found, times, strict=False))
    if found.size > _SHOWN:
        listed += f" and {found.size - _SHOWN} more"
    return (
        f"{found.size} of {diagonal.size} features have more than {MOST_OF_MEDIAN:g} times the median second moment: "
        f"{listed}; in the mean that a relative ridge is a share of each counts as {MOST_OF_MEDIAN:g} times"
    )


def _most(diagonal: Vector) -> float:
    """Return the most that a feature counts for; infinite where all of them are zero.

    Features that are constant, but for rounding beside the largest one, have no part in the median.
    """
    live = diagonal[diagonal > EPSILON * diagonal.size * diagonal.max(initial=0.0)]
    return MOST_OF_MEDIAN * float(np.median(live)) if live.size else math.inf


def _bounded(diagonal: Vector) -> Vector:
    return np.minimum(diagonal, _most(diagonal))
