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
from typing import cast

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.rank_k import one_blas_thread
from dalr_stream.numerics.types import Matrix, Vector

EPSILON = float(np.finfo(np.float64).eps)
"""2.2e-16. An eigenvalue below order x EPSILON x the largest is rounding: the backward error of LAPACK's symmetric
solvers, and the rule of numpy's matrix_rank."""

SHARED_FROM = 4096
"""Order from which a decomposition uses all BLAS threads. Below it they wait for one another more than they work: the
reduction to a tridiagonal is one matrix-vector product per column, at the speed of memory, with a barrier after each.
On two busy cores eigenvectors of order 1536 took 1.1 s (0.56 s of CPU) with one thread and 18 s (7.4 s) with two; on
two idle ones order 4096 took 9.5 s and 5.6 s."""

PARTIAL_UP_TO = 0.125
"""Share of the eigenvectors up to which they alone are computed (LAPACK's evr); above it divide and conquer (evd) finds
all of them in less time: at order 4,096 in 5.6 s, where evr took 3.3 s for 256 and 7.4 s for 1,024."""


_ROWS_AT_ONCE = 256
"""Looked at for NaN and Inf: a mask of all of them would be an eighth of a matrix."""


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


def symmetric_eigen(matrix: Matrix, most: int | None = None, *, overwrite: bool = False) -> Eigen:
    """Eigenvalues, descending, and eigenvectors of a symmetric matrix (p, p); the `most` largest, all by default.

    Only the lower triangle is read. Fewer than all are computed alone where they are at most `PARTIAL_UP_TO` of them.
    Raises InvalidInputError where it holds NaN or Inf. Cost: about 9 p^3 operations and 3 p^2 doubles for all,
    4/3 p^3 + 2 p^2 K operations and p^2 doubles for the largest K; the matrix itself is among them where it may be
    overwritten and lies in columns (Fortran order).
    """
    require_finite(matrix, "matrix")
    p = len(matrix)
    wanted = p if most is None else min(most, p)
    partial = wanted <= PARTIAL_UP_TO * p
    options = {"driver": "evr", "subset_by_index": [p - wanted, p - 1]} if partial else {"driver": "evd"}
    try:
        with threads_for(p):
            values, vectors = scipy.linalg.eigh(matrix, check_finite=False, overwrite_a=overwrite, **options)
    except scipy.linalg.LinAlgError as failure:
        raise InvalidInputError(f"eigenvalues of a matrix of order {p} did not converge") from failure
    trace = float(values.sum())
    margin = None if partial and wanted < p else float(values[0]) / trace if trace > 0.0 else 0.0
    return Eigen(values[::-1][:wanted].copy(), orient(vectors[:, ::-1][:, :wanted]), margin)


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
    left *= signs
    right *= signs[:, None]
    return Singular(left, values, right)


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


def tail_sums(steps: Vector, last: float) -> Vector:
    """(K + 1,): last + steps[k] + ... + steps[K - 1] for k = 0..K, added from the end."""
    return np.cumsum(np.concatenate([[last], steps[::-1]]))[::-1].copy()


def threads_for(order: int) -> AbstractContextManager[None]:
    """One BLAS thread for a decomposition of a small `order`, as many as there are for the others."""
    return one_blas_thread() if order < SHARED_FROM else nullcontext()


def require_finite(matrix: NDArray[np.generic], name: str) -> None:
    """Raise InvalidInputError where `matrix` holds NaN or Inf."""
    rows = np.atleast_2d(matrix.T if matrix.flags.f_contiguous else matrix)
    runs = (rows[first : first + _ROWS_AT_ONCE] for first in range(0, len(rows), _ROWS_AT_ONCE))
    bad = sum(run.size - int(np.count_nonzero(np.isfinite(run))) for run in runs)
    if bad:
        raise InvalidInputError(f"{name} must be finite, got {bad} NaN or Inf among {matrix.size} entries")


def column_signs(vectors: Matrix) -> Vector:
    """+1 or -1 for each column: the sign of its entry of largest magnitude."""
    if vectors.size == 0:
        return np.ones(vectors.shape[1])
    largest = np.argmax(np.abs(vectors), axis=0)
    return np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
