"""Symmetric positive semi-definite matrices: the only Cholesky, eigenvalue and singular value code of the package.

Moments are rank-deficient as a matter of course: dead, constant and duplicated features, fewer samples than
features. So nothing here inverts a matrix. An eigendecomposition reveals the rank; a ridge system goes through
Cholesky where the factor itself proves that to be safe, and through the eigendecomposition, dropping what is below
rounding, everywhere else. Which of the two it was is part of the answer.

The invariant: the same matrix gives the same bits, signs of vectors included, and finite input never ends in an
error of LAPACK.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.rank_k import one_blas_thread

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

EPSILON = float(np.finfo(np.float64).eps)
"""2.2e-16. An eigenvalue below order x EPSILON x the largest is rounding: the backward error of LAPACK's symmetric
solvers, and the rule of numpy's matrix_rank."""

SAFE_RECIPROCAL_CONDITION = 1e-12
"""Cholesky is trusted above this estimate of 1 / condition. Its regression is then right to about 1e-4 in the worst
direction and to 1e-16 in the objective, and every relative ridge of 1e-6 and more passes at d <= 25088 unless a
single direction carries nearly the whole trace. Below it the eigenvalue route decides what is rounding."""


SHARED_FROM = 4096
"""Order from which a decomposition uses all BLAS threads. Below it they wait for one another more than they work: the
reduction to a tridiagonal is one matrix-vector product a column, at the speed of memory, with a barrier after each.
On two busy cores eigenvectors of order 1536 took 1.1 s (0.56 s of CPU) with one thread and 18 s (7.4 s) with two; on
two idle ones order 4096 took 9.5 s and 5.6 s."""

PARTIAL_UP_TO = 0.125
"""Share of the eigenvectors up to which they alone are computed (LAPACK's evr); above it divide and conquer (evd) finds
all of them in less time: at order 4,096 in 5.6 s, where evr took 3.3 s for 256 and 7.4 s for 1,024."""


_INVERSE_STEPS = 12
"""Each divides what is left of other directions by the ratio of their eigenvalues: an estimate from above."""


class Route(StrEnum):
    """How a problem was solved. Recorded in `Diagnostics.route`."""

    SVD = "svd"
    CHOLESKY = "cholesky"
    EIGEN = "eigen"
    OUTPUTS = "outputs"
    DUAL = "dual"
    ROOT = "root"
    GREEDY = "greedy"
    RANKING = "ranking"


@dataclass(frozen=True, slots=True, eq=False)
class Eigen:
    """The K largest eigenvalues, descending, and eigenvectors (p, K), each with its largest entry positive."""

    values: Vector
    vectors: Matrix
    margin: float | None = None
    """Smallest eigenvalue over the trace, where all were computed."""

    @property
    def rank(self) -> int:
        """Eigenvalues above rounding, of those that are here."""
        return numerical_rank(self.values, self.vectors.shape[0])

    @property
    def known_rank(self) -> int | None:
        """Numerical rank of the matrix, None where those that are here do not show it."""
        return self.rank if self.whole or self.rank < self.values.size else None

    @property
    def whole(self) -> bool:
        """Whether all p are here."""
        return bool(self.values.size == self.vectors.shape[0])

    def largest(self, most: int) -> Eigen:
        """Return the `most` largest."""
        return self if most >= self.values.size else Eigen(self.values[:most], self.vectors[:, :most], self.margin)


@dataclass(frozen=True, slots=True, eq=False)
class Singular:
    """W = left diag(values) right with left (m, K), values (K,) descending, right (K, d) and K = min(m, d)."""

    left: Matrix
    values: Vector
    right: Matrix


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

    def half_fit(self, weight: Matrix) -> Matrix:
        """Y = H' S W' (r, m), so that Y'Y = W S (S + ridge I)^-1 S W'."""

    def pull_back(self, half: Matrix) -> Matrix:
        """H Y (d, k): for Y = half_fit(W) the transpose of the ridge regression W S (S + ridge I)^-1."""


def symmetric_eigen(matrix: Matrix, most: int | None = None) -> Eigen:
    """Eigenvalues, descending, and eigenvectors of a symmetric matrix (p, p); the `most` largest, all by default.

    Only the lower triangle is read. Fewer than all are computed alone where they are at most `PARTIAL_UP_TO` of them.
    Raises InvalidInputError where it holds NaN or Inf. Cost: about 9 p^3 operations and 3 p^2 doubles for all,
    4/3 p^3 + 2 p^2 K operations and p^2 doubles for the largest K.
    """
    require_finite(matrix, "matrix")
    p = len(matrix)
    kept = p if most is None else min(most, p)
    partial = kept <= PARTIAL_UP_TO * p
    options = {"driver": "evr", "subset_by_index": [p - kept, p - 1]} if partial else {"driver": "evd"}
    try:
        with threads_for(p):
            values, vectors = scipy.linalg.eigh(matrix, check_finite=False, **options)
    except scipy.linalg.LinAlgError as failure:
        raise InvalidInputError(f"eigenvalues of a matrix of order {p} did not converge") from failure
    trace = float(values.sum())
    margin = None if partial and kept < p else float(values[0]) / trace if trace > 0.0 else 0.0
    return Eigen(values[::-1][:kept].copy(), orient(vectors[:, ::-1][:, :kept]), margin)


def symmetric_values(matrix: Matrix) -> Vector:
    """Eigenvalues (p,) alone, descending, of a symmetric matrix (p, p). Cost: about 4/3 p^3 operations."""
    require_finite(matrix, "matrix")
    with threads_for(len(matrix)):
        values = scipy.linalg.eigh(matrix, eigvals_only=True, check_finite=False)
    return cast("Vector", values[::-1].copy())


def psd_margin(matrix: Matrix) -> float:
    """Smallest eigenvalue of a symmetric `matrix` (p, p) over its trace: how far from semi-definite it is, if below 0.

    A sum of squares has a margin of -p EPSILON or more. Subtracting records can leave less: what was large in both is
    rounding in the difference. 0 for a matrix of zeros, -inf where the trace is not positive and the matrix not zero.
    Cost: about 4/3 p^3 operations, p^2 doubles.
    """
    require_finite(matrix, "matrix")
    trace = float(np.trace(matrix))
    if trace <= 0.0:
        return -np.inf if matrix.any() else 0.0
    with threads_for(len(matrix)):
        smallest = scipy.linalg.eigh(matrix, eigvals_only=True, subset_by_index=[0, 0], check_finite=False)
    return float(smallest[0]) / trace


def thin_svd(weight: Matrix) -> Singular:
    """Singular values, descending, and vectors of `weight` (m, d). Cost: about 6 m d min(m, d) operations and more.

    Raises InvalidInputError where it holds NaN or Inf.
    """
    require_finite(weight, "weight")
    try:
        with threads_for(min(weight.shape)):
            left, values, right = scipy.linalg.svd(weight, full_matrices=False, check_finite=False)
    except scipy.linalg.LinAlgError as failure:
        raise InvalidInputError(f"singular values of a {weight.shape} matrix did not converge") from failure
    signs = column_signs(left)
    return Singular(left * signs, values, right * signs[:, None])


def thin_qr(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Orthonormal columns Q (m, d) and triangle T (d, d) with Q T = `matrix` (m, d), m >= d."""
    q, t = scipy.linalg.qr(matrix, mode="economic", check_finite=False)
    return cast("Matrix", q), cast("Matrix", t)


def numerical_rank(values: Vector, order: int | None = None) -> int:
    """Count the eigenvalues above p x EPSILON x the largest; p is the `order`, where `values` are not all of them."""
    if values.size == 0:
        return 0
    p = values.size if order is None else order
    return int(np.count_nonzero(values > p * EPSILON * max(float(values.max()), 0.0)))


def orient(vectors: Matrix) -> Matrix:
    """Columns of `vectors` with the entry of largest magnitude (the first of them) made positive."""
    return vectors * column_signs(vectors)


def factor_ridge(matrix: Matrix, ridge: float) -> RidgeFactor:
    """Factor S + ridge I for a positive semi-definite `matrix` S (d, d) and ridge >= 0.

    The rule: Cholesky, where it succeeds and LAPACK's estimate of 1 / condition is at least
    SAFE_RECIPROCAL_CONDITION; otherwise eigenvalues, with those of S below rounding taken for zero, which at ridge 0
    gives the solution of minimum norm. Cost: d^3 / 3 operations for Cholesky, and 9 d^3 more where that is refused.
    """
    require_finite(matrix, "moments")
    shifted = np.array(matrix.T, order="F")  # symmetric, and already in columns: turning it would take longer
    shifted.flat[:: len(shifted) + 1] += ridge
    norm = lapack.dlange("1", shifted)
    lower, failed = lapack.dpotrf(shifted, lower=1, clean=0, overwrite_a=1)
    reciprocal = 0.0 if failed else float(lapack.dpocon(lower, norm, uplo="L")[0])
    if reciprocal >= SAFE_RECIPROCAL_CONDITION:
        return CholeskyFactor(matrix, lower, ridge, 1.0 / reciprocal)
    del shifted, lower
    return EigenFactor.of(symmetric_eigen(matrix), ridge)


@dataclass(frozen=True, slots=True, eq=False)
class CholeskyFactor:
    """H = L^-T with S + ridge I = L L'; only the lower triangle of `lower` means anything."""

    matrix: Matrix
    lower: Matrix
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
        trace = float(np.trace(self.matrix))
        vector = np.cos(np.arange(1.0, len(self.lower) + 1))
        smallest = 0.0
        for _ in range(_INVERSE_STEPS):
            vector = vector / np.abs(vector).max()  # of any units: squares of 1e160 and of 1e-200 are no numbers
            vector = vector / np.linalg.norm(vector)
            solved = blas.dtrsv(self.lower, blas.dtrsv(self.lower, vector, lower=1), lower=1, trans=1)
            smallest = 1.0 / float(np.vdot(vector, solved))
            vector = solved
        return (smallest - self.ridge) / trace if trace > 0.0 else 0.0

    def half(self, right: Matrix) -> Matrix:
        """L^-1 B. Cost: k d^2 operations."""
        return _solve_triangle(self.lower, right, turned=False)

    def half_fit(self, weight: Matrix) -> Matrix:
        """Y = L^-1 S W'. Cost: 3 m d^2 operations."""
        return self.half(self.matrix @ weight.T)

    def pull_back(self, half: Matrix) -> Matrix:
        """L^-T Y. Cost: k d^2 operations."""
        return _solve_triangle(self.lower, half, turned=True)


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

    def half_fit(self, weight: Matrix) -> Matrix:
        """Y = diag(s / sqrt(s + ridge)) V' W': S W' itself would bring rounding back along weak directions."""
        scale = self.values / np.sqrt(self.values + self.ridge)
        return scale[:, None] * (self.vectors.T @ weight.T)

    def pull_back(self, half: Matrix) -> Matrix:
        """V diag(s + ridge)^-1/2 Y. Cost: 2 k d r operations."""
        return self.vectors @ (half / np.sqrt(self.values + self.ridge)[:, None])


def _solve_triangle(lower: Matrix, right: Matrix, *, turned: bool) -> Matrix:
    """L^-1 B, or L^-T B where `turned`, in the memory order of B (d, k): B is copied once, and never turned."""
    if right.flags.c_contiguous:
        columns = np.array(right.T, order="F")
        solved = blas.dtrsm(1.0, lower, columns, side=1, lower=1, trans_a=not turned, overwrite_b=1)
        return cast("Matrix", solved.T)
    solved = np.array(right, order="F")
    return cast("Matrix", blas.dtrsm(1.0, lower, solved, lower=1, trans_a=turned, overwrite_b=1))


def threads_for(order: int) -> AbstractContextManager[None]:
    """One BLAS thread for a decomposition of a small `order`, as many as there are for the others."""
    return one_blas_thread() if order < SHARED_FROM else nullcontext()


def require_finite(matrix: NDArray[np.generic], name: str) -> None:
    """Raise InvalidInputError where `matrix` holds NaN or Inf."""
    finite = np.isfinite(matrix)
    if not finite.all():
        bad = matrix.size - int(finite.sum())
        raise InvalidInputError(f"{name} must be finite, got {bad} NaN or Inf among {matrix.size} entries")


def column_signs(vectors: Matrix) -> Vector:
    """+1 or -1 for each column: the sign of its entry of largest magnitude."""
    if vectors.size == 0:
        return np.ones(vectors.shape[1])
    largest = np.argmax(np.abs(vectors), axis=0)
    return np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
