"""S + ridge I factored, for a positive semi-definite S: by Cholesky where that is safe, else by its eigenvalues.

No inverse is formed: a solution is B -> H H'B with H H' = (S + ridge I)^-1, H being a triangle's inverse or scaled
eigenvectors. Cholesky is taken where the factor itself proves that to be safe; the eigendecomposition, dropping what is
below rounding, everywhere else. Which of the two it was is part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import numpy as np
from scipy.linalg import blas, lapack

from dalr_stream.numerics.diagnostics import Route
from dalr_stream.numerics.linalg.psd import Eigen, require_finite, symmetric_eigen
from dalr_stream.numerics.types import Matrix, Vector

SAFE_RECIPROCAL_CONDITION = 1e-12
"""Cholesky is trusted above this estimate of 1 / condition. Its regression is then right to about 1e-4 in the worst
direction and to 1e-16 in the objective, and every relative ridge of 1e-6 and more passes at d <= 25088 unless a
single direction carries nearly the whole trace. Below it the eigenvalue route decides what is rounding."""

_INVERSE_STEPS = 12
"""Each divides what is left of other directions by the ratio of their eigenvalues: an estimate from above."""


class RidgeFactor(Protocol):
    """Half of (S + ridge I)^-1 = H H', with what is below rounding left out where S is singular."""

    @property
    def route(self) -> Route:
        """How S was factored."""

    @property
    def rank(self) -> int | None:
        """Numerical rank of S, where it came to light."""

    @property
    def condition(self) -> float:
        """Estimate of the condition of S + ridge I, over the directions that were kept."""

    @property
    def margin(self) -> float:
        """Smallest eigenvalue of S over its trace, to rounding; clearly negative where S is not semi-definite."""

    def half(self, right: Matrix) -> Matrix:
        """H' B (r, k) for a right-hand side B (d, k): `pull_back` makes it the solution (S + ridge I)^-1 B."""

    def half_fit(self, weight: Matrix, times: Times) -> Matrix:
        """Y = H' S W' (r, m), so that Y'Y = W S (S + ridge I)^-1 S W'; `times` makes B S of a B."""

    def pull_back(self, half: Matrix, *, overwrite: bool = False) -> Matrix:
        """H Y (d, k): for Y = half_fit(W) the transpose of the ridge regression W S (S + ridge I)^-1.

        `overwrite` may take the memory of Y for it.
        """


Times = Callable[[Matrix], Matrix]


def factor_ridge(matrix: Matrix, ridge: float) -> RidgeFactor:
    """Factor S + ridge I for a positive semi-definite `matrix` S (d, d) and ridge >= 0.

    The rule: Cholesky, where it succeeds and LAPACK's estimate of 1 / condition is at least
    SAFE_RECIPROCAL_CONDITION; otherwise eigenvalues, with those of S below rounding taken for zero, which at ridge 0
    gives the solution of minimum norm. Cost: d^3 / 3 operations for Cholesky, and 9 d^3 more where that is refused.
    Memory: d^2 doubles, and 3 d^2 where it is refused.
    """
    return factor_ridge_of(partial(np.array, matrix, order="C"), ridge)


def factor_ridge_of(make: Callable[[], Matrix], ridge: float) -> RidgeFactor:
    """Do what `factor_ridge` does with the matrix that `make` makes, C order, anew each time: it is overwritten."""
    shifted = make().T  # symmetric, and already in columns: turning it would take longer
    require_finite(shifted, "moments")
    trace = float(np.trace(shifted))
    shifted.flat[:: len(shifted) + 1] += ridge
    norm = lapack.dlange("1", shifted)
    lower, failed = lapack.dpotrf(shifted, lower=1, clean=0, overwrite_a=1)
    reciprocal = 0.0 if failed else float(lapack.dpocon(lower, norm, uplo="L")[0])
    if reciprocal >= SAFE_RECIPROCAL_CONDITION:
        return CholeskyFactor(lower, trace, ridge, 1.0 / reciprocal)
    del shifted, lower
    return EigenFactor.of(symmetric_eigen(make().T, overwrite=True), ridge)


@dataclass(frozen=True, slots=True, eq=False)
class CholeskyFactor:
    """H = L^-T with S + ridge I = L L'; only the lower triangle of `lower` means anything."""

    lower: Matrix
    trace: float
    """Of S."""
    ridge: float
    condition: float

    @property
    def route(self) -> Route:
        """Cholesky."""
        return Route.CHOLESKY

    @property
    def rank(self) -> int | None:
        """Unknown: the ridge hides it."""
        return None

    @property
    def margin(self) -> float:
        """By inverse iteration from a fixed start, `_INVERSE_STEPS` solves. Cost: 2 d^2 operations each."""
        vector = np.cos(np.arange(1.0, len(self.lower) + 1))
        smallest = 0.0
        for _ in range(_INVERSE_STEPS):
            vector = vector / np.abs(vector).max()  # of any units: squares of 1e160 and of 1e-200 are no numbers
            vector = vector / np.linalg.norm(vector)
            solved = blas.dtrsv(self.lower, blas.dtrsv(self.lower, vector, lower=1), lower=1, trans=1)
            smallest = 1.0 / float(np.vdot(vector, solved))
            vector = solved
        return (smallest - self.ridge) / self.trace if self.trace > 0.0 else 0.0

    def half(self, right: Matrix) -> Matrix:
        """L^-1 B. Cost: k d^2 operations."""
        return _solve_triangle(self.lower, right, turned=False)

    def half_fit(self, weight: Matrix, times: Times) -> Matrix:
        """Y = L^-1 S W'. Cost: 3 m d^2 operations."""
        return _solve_triangle(self.lower, times(weight).T, turned=False, overwrite=True)

    def pull_back(self, half: Matrix, *, overwrite: bool = False) -> Matrix:
        """L^-T Y. Cost: k d^2 operations."""
        return _solve_triangle(self.lower, half, turned=True, overwrite=overwrite)


@dataclass(frozen=True, slots=True, eq=False)
class EigenFactor:
    """H = V diag(s + ridge)^-1/2 over the eigenvalues s (r,) of S above rounding, V (d, r) their vectors."""

    values: Vector
    vectors: Matrix
    ridge: float
    margin: float

    @classmethod
    def of(cls, eigen: Eigen, ridge: float) -> EigenFactor:
        """Keep what is above rounding, of all the eigenvalues of S."""
        r = eigen.rank
        return cls(eigen.values[:r], eigen.vectors[:, :r], ridge, eigen.margin or 0.0)

    @property
    def route(self) -> Route:
        """By eigenvalues."""
        return Route.EIGEN

    @property
    def rank(self) -> int | None:
        """Directions kept, r."""
        return self.values.size

    @property
    def condition(self) -> float:
        """(largest + ridge) / (smallest kept + ridge); 1 where nothing was kept."""
        return float((self.values[0] + self.ridge) / (self.values[-1] + self.ridge)) if self.values.size else 1.0

    def half(self, right: Matrix) -> Matrix:
        """diag(s + ridge)^-1/2 V' B. Cost: 2 k d r operations."""
        return (self.vectors.T @ right) / np.sqrt(self.values + self.ridge)[:, None]

    def half_fit(self, weight: Matrix, times: Times) -> Matrix:  # noqa: ARG002  # not by products with S
        """Y = diag(s / sqrt(s + ridge)) V' W': S W' itself would bring rounding back along weak directions."""
        scale = self.values / np.sqrt(self.values + self.ridge)
        return scale[:, None] * (self.vectors.T @ weight.T)

    def pull_back(self, half: Matrix, *, overwrite: bool = False) -> Matrix:  # noqa: ARG002  # a product
        """V diag(s + ridge)^-1/2 Y. Cost: 2 k d r operations."""
        return self.vectors @ (half / np.sqrt(self.values + self.ridge)[:, None])


def _solve_triangle(lower: Matrix, right: Matrix, *, turned: bool, overwrite: bool = False) -> Matrix:
    """L^-1 B, or L^-T B where `turned`, in the memory order of B (d, k): B is never turned, and copied at most once."""
    if right.flags.c_contiguous and not right.flags.f_contiguous:
        columns = np.array(right.T, order="F", copy=True if not overwrite else None)
        solved = blas.dtrsm(1.0, lower, columns, side=1, lower=1, trans_a=not turned, overwrite_b=1)
        return cast("Matrix", solved.T)
    solved = np.array(right, order="F", copy=True if not overwrite else None)
    return cast("Matrix", blas.dtrsm(1.0, lower, solved, lower=1, trans_a=turned, overwrite_b=1))
