"""First and second moments of a set of rows: small, additive, and enough to solve from.

A record holds the count, the mean and the scatter *about the mean*. Centring is what keeps a feature whose mean is
10,000 times its spread: sums about zero lose its covariance, sums about its mean do not. Joining two records needs
one rank-one term (Chan, Golub and LeVeque 1979): with delta = mean_a - mean_b,

    mean = (n_a mean_a + n_b mean_b) / n        scatter = S_a + S_b + (n_a n_b / n) delta delta'

and everything else (second moments about zero, covariances, spectra) is a view of these. Adding is commutative to
the bit and associative to rounding. This module does no input and no output and never changes an array it was given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.linalg.psd import psd_margin
from dalr_stream.numerics.linalg.rank_k import add_rank_k, add_rank_one, mirror_lower, one_blas_thread
from dalr_stream.numerics.statistics.centring import centre, describe_non_finite, runs_of
from dalr_stream.numerics.statistics.products import ByBlocks, Products, by_matrix
from dalr_stream.numerics.types import Matrix, Vector, real_array


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments of `count` rows of d features, in float64 whatever the rows were.

    Records are added with `+`, in any order and grouping, and subtracted with `-`. Two are compared with `same_bits`;
    `==` is identity.

    Attributes
    ----------
    count
        Rows.
    samples
        Independent samples the rows came from; fewer than rows where a sample gives several.
    mean
        (d,): mean of the rows.
    scatter
        (d, d): sum of (x - mean)(x - mean)', symmetric.
    max_abs
        (d,): largest |x|; NaN where it is unknown, after a subtraction.
    maximum
        (d,): largest x; NaN where it is unknown.
    nonzero
        (d,): rows in which the feature is not zero.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> both = ds.Moments.of([[1.0, 2.0], [3.0, 6.0]]) + ds.Moments.of([[5.0, 7.0]])
    >>> both.count, both.mean.tolist()
    (3, [3.0, 5.0])
    >>> both.gram.tolist()
    [[35.0, 55.0], [55.0, 89.0]]
    """

    count: int
    samples: int
    mean: Vector
    scatter: Matrix
    max_abs: Vector
    maximum: Vector
    nonzero: NDArray[np.int64]

    def __post_init__(self) -> None:
        d = self.mean.size
        if self.mean.ndim != 1 or self.scatter.shape != (d, d):
            raise InvalidInputError(f"moments: mean {self.mean.shape} and scatter {self.scatter.shape} do not match")
        if not 0 <= self.samples <= self.count:
            raise InvalidInputError(f"moments: samples must lie in 0..{self.count} rows, got {self.samples}")
        require_finite_sums(self.scatter.diagonal(), "moments")
        for array in (self.mean, self.scatter, self.max_abs, self.maximum, self.nonzero):
            array.setflags(write=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.count:,} rows, {self.features} features"

    @classmethod
    def empty(cls, features: int) -> Moments:
        """Moments of no rows: the identity of `+`."""
        nothing = np.full(features, -np.inf)
        zeros = np.zeros(features)
        scatter = np.broadcast_to(np.zeros(()), (features, features))  # d^2 zeros that take no memory
        return cls(0, 0, zeros, scatter, zeros.copy(), nothing, np.zeros(features, np.int64))

    @classmethod
    def of(cls, rows: ArrayLike, *, samples: int | None = None) -> Moments:
        """Return the moments of `rows` (n, d), n >= 0, taken as one block; `samples` defaults to n.

        Raises
        ------
        NonFiniteError
            Where a row holds NaN or Inf.

        Notes
        -----
        Cost: n d^2 multiply-adds, 8 n d bytes.
        """
        block = real_array(rows, "moments: rows")
        if block.ndim != 2:
            raise InvalidInputError(f"moments: rows must be a matrix of samples x features, got shape {block.shape}")
        n, d = block.shape
        if n == 0:
            return cls.empty(d)
        runs = runs_of(n)
        centred = np.empty((n + len(runs), d))
        summary = centre(block, runs, centred)
        if not np.isfinite(summary.mean).all():
            raise NonFiniteError(f"moments: rows must be finite, got {describe_non_finite(block)}")
        scatter = np.zeros((d, d))
        with one_blas_thread():
            add_rank_k(scatter, centred)
        mirror_lower(scatter)
        max_abs = np.maximum(np.abs(summary.maximum), np.abs(summary.minimum))
        return cls(
            n, n if samples is None else samples, summary.mean, scatter, max_abs, summary.maximum, summary.nonzero
        )

    def features_between(self, start: int, stop: int) -> Moments:
        """Moments of the features start ... stop - 1 alone; the record itself where those are all. Cost: their d^2."""
        if (start, stop) == (0, self.features):
            return self
        if not 0 <= start < stop <= self.features:
            raise InvalidInputError(f"moments: features must lie in 0..{self.features}, got {start}..{stop}")
        part = slice(start, stop)
        mean, max_abs, maximum = (column[part].copy() for column in (self.mean, self.max_abs, self.maximum))
        scatter, nonzero = self.scatter[part, part].copy(), self.nonzero[part].copy()
        return Moments(self.count, self.samples, mean, scatter, max_abs, maximum, nonzero)

    def features_every(self, start: int, step: int) -> Moments:
        """Moments of the features start, start + step, ... alone; the record itself where those are all."""
        if (start, step) == (0, 1):
            return self
        part = slice(start, None, step)
        mean, max_abs, maximum = (column[part].copy() for column in (self.mean, self.max_abs, self.maximum))
        scatter, nonzero = self.scatter[part, part].copy(), self.nonzero[part].copy()
        return Moments(self.count, self.samples, mean, scatter, max_abs, maximum, nonzero)

    def with_samples(self, samples: int) -> Moments:
        """Return the same rows, said to come from so many samples."""
        return Moments(self.count, samples, self.mean, self.scatter, self.max_abs, self.maximum, self.nonzero)

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows together. Commutative to the bit. Cost: d^2."""
        if not isinstance(other, Moments):
            return NotImplemented
        if self.features != other.features:
            raise InvalidInputError(
                f"moments of {self.features} and of {other.features} features cannot be added: not the same layer"
            )
        if other.count == 0 or self.count == 0:
            return self if other.count == 0 else other
        n = self.count + other.count
        delta = self.mean - other.mean
        scatter = self.scatter + other.scatter
        with np.errstate(over="ignore", invalid="ignore"):  # the record made of it refuses what overflowed
            add_rank_one(scatter, self.count * other.count / n, delta, delta)
        return Moments(
            n,
            self.samples + other.samples,
            pooled_mean(self.count, self.mean, other.count, other.mean),
            scatter,
            np.maximum(self.max_abs, other.max_abs),
            np.maximum(self.maximum, other.maximum),
            self.nonzero + other.nonzero,
        )

    def __sub__(self, other: Moments) -> Moments:
        """Moments of the rows of `self` that are not in `other`, which must have been added to it before.

        Exact in the counts, and within rounding of the larger record in the rest, so that the scatter may end up
        slightly indefinite: `psd_margin` says by how much. Extrema become unknown (NaN).
        To remove rows exactly, add up the records of the rows that stay. Cost: d^2.
        """
        if not isinstance(other, Moments):
            return NotImplemented
        n = self.count - other.count
        if self.features != other.features or n < 0 or self.samples < other.samples:
            raise InvalidInputError(
                f"moments of {other.count} rows of {other.features} features cannot be taken from "
                f"{self.count} rows of {self.features}"
            )
        if other.count == 0 or n == 0:
            return self if other.count == 0 else Moments.empty(self.features)
        mean = self.mean + (self.mean - other.mean) * (other.count / n)
        delta = mean - other.mean
        scatter = self.scatter - other.scatter
        add_rank_one(scatter, -(n * other.count / self.count), delta, delta)
        unknown = np.full(self.features, np.nan)
        nonzero = self.nonzero - other.nonzero
        return Moments(n, self.samples - other.samples, mean, scatter, unknown, unknown.copy(), nonzero)

    @property
    def features(self) -> int:
        """d."""
        return self.mean.size

    @property
    def parts(self) -> tuple[Moments]:
        """A one-element tuple, so plain and grouped moments iterate alike."""
        return (self,)

    @property
    def covariance(self) -> Matrix:
        """(d, d): scatter / count, about the mean, population normalised. A new array."""
        return self.scatter / self._some_rows()

    @property
    def variance(self) -> Vector:
        """(d,): the diagonal of `covariance`."""
        return np.diagonal(self.scatter) / self._some_rows()

    @property
    def gram(self) -> Matrix:
        """(d, d): XX' of the papers, the unnormalised sum of x x' about zero. A new array."""
        return self.scatter_about(np.zeros(self.features))

    @property
    def second_moment(self) -> Matrix:
        """(d, d): E[x x'] = gram / count. A new array."""
        gram = self.gram
        gram /= self._some_rows()
        return gram

    @property
    def active_rate(self) -> Vector:
        """(d,): share of rows in which the feature is not zero (DALR, section 3)."""
        return self.nonzero / self._some_rows()

    @property
    def psd_margin(self) -> float:
        """Smallest eigenvalue of the scatter over its trace; clearly below 0 after a subtraction that lost digits.

        Rounding alone gives -d x 2.2e-16 or so. Cost: about 4/3 d^3 operations, each time.
        """
        return psd_margin(self.scatter)

    def scatter_about(self, centre: Vector) -> Matrix:
        """(d, d): sum of (x - centre)(x - centre)' = scatter + n delta delta'. A new array."""
        return self._by_blocks.matrix(centre)

    def squares_about(self, centre: Vector) -> float:
        """tr(S^2), the sum of squares of `scatter_about(centre)`, which is not formed. Cost: 2 d^2 operations."""
        return self._by_blocks.squares(centre)

    @property
    def products(self) -> Products:
        """Products with the scatter about any centre, for which no other d x d is formed."""
        return self._by_blocks

    def same_bits(self, other: Moments) -> bool:
        """Tell whether both records hold exactly the same numbers."""
        counts = (self.count, self.samples) == (other.count, other.samples)
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        return counts and all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    @property
    def _by_blocks(self) -> ByBlocks:
        return by_matrix(self.count, self.mean, self.scatter)

    def _arrays(self) -> tuple[NDArray[np.generic], ...]:
        return self.mean, self.scatter, self.max_abs, self.maximum, self.nonzero

    def _some_rows(self) -> int:
        if self.count == 0:
            raise InvalidInputError("moments of no rows have no mean and no covariance: accumulate some rows first")
        return self.count


def require_finite_sums(variances: Vector, what: str) -> None:
    """Raise NonFiniteError where sums of squares overflowed: no other entry of a scatter overflows before these."""
    finite = np.isfinite(variances)
    if not finite.all():
        raise NonFiniteError(
            f"{what}: the sum of squares of feature {int(np.argmin(finite))} is beyond float64 (1.8e308), though its "
            "values are finite: scale the activations down"
        )


def pooled_mean(n_a: int, mean_a: Vector, n_b: int, mean_b: Vector) -> Vector:
    """Mean of both sets of rows: the same bits in either order, and exact where the two means are equal."""
    if n_a == n_b:
        return 0.5 * mean_a + 0.5 * mean_b
    if n_a < n_b:
        n_a, mean_a, n_b, mean_b = n_b, mean_b, n_a, mean_a
    return mean_a + (mean_b - mean_a) * (n_b / (n_a + n_b))
