"""Squared errors of every rank at once, from moments: what a basis U (m, K) and a regression D (K, d) leave of Y.

With W_k = U_k D_k, x and y about the centres that the factors were solved with, S = X X' and a metric G of the outputs,

    err(k) = tr(G (W - W_k) S (W - W_k)')
    err(k - 1) - err(k) = 2 u_k'G W S d_k - (u_k'G u_k) d_k'S d_k - 2 sum_{j<k} (u_k'G u_j) d_k'S d_j

and for orthonormal U and G = I that is 2 u_k'W S d_k - d_k'S d_k. err(K) is formed directly and the rest added from the
tail: prefix sums lose small errors to cancellation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.linalg.psd import symmetric_values, tail_sums
from dalr_stream.numerics.linalg.ridge_factor import factor_ridge_of
from dalr_stream.numerics.statistics.products import Products
from dalr_stream.numerics.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """U (m, K) and D (K, d), and the metric G (m, m) in which their error is measured; None is I."""

    basis: Matrix
    down: Matrix
    orthonormal: bool
    metric: Matrix | None = None

    def seen(self, matrix: Matrix) -> Matrix:
        """G B."""
        return matrix if self.metric is None else self.metric @ matrix

    def with_those_before(self, rows: Matrix) -> Matrix:
        """Row k: (u_k'G u_k) b_k + 2 sum_{j<k} (u_k'G u_j) b_j, which is b_k for orthonormal U and G = I."""
        if self.orthonormal and self.metric is None:
            return rows
        gram = self.basis.T @ self.seen(self.basis)
        return (2.0 * np.tril(gram, -1) + np.diag(np.diagonal(gram))) @ rows


def errors_on_inputs(pair: Pair, weight: Matrix, products: Products, centre: Vector) -> Vector:
    """(K + 1,): Y = W X, by the moments of X about `centre`. Cost: 4 m d^2 operations, and 2 m^2 d for a metric."""
    residual = pair.basis @ pair.down
    np.subtract(weight, residual, out=residual)
    last = float(products.forms(residual, pair.seen(residual), centre).sum())
    del residual
    twice = pair.seen(pair.basis).T @ weight
    twice *= 2.0
    twice -= pair.with_those_before(pair.down)
    return tail_sums(products.forms(pair.down, twice, centre), last)


def errors_on_cross(pair: Pair, between: Matrix, fitted: Matrix, total: Matrix) -> Vector:
    """(K + 1,): Y of another run. `between` is Y X' (m, d), `fitted` D S (K, d), `total` Y Y' (m, m)."""
    both = 2.0 * (pair.seen(pair.basis).T @ between) - pair.with_those_before(fitted)
    steps = np.einsum("ij,ij->i", both, pair.down)
    return tail_sums(steps, float(np.trace(pair.seen(total))) - float(steps.sum()))


def errors_on_outputs(basis: Matrix, scatter: Matrix) -> Vector:
    """(K + 1,): tr((I - U_k U_k') Y Y') for D = U'W and orthonormal U, whatever X was. Cost: 2 m^2 K operations."""
    steps = np.einsum("ij,ij->j", basis, scatter @ basis)
    square = basis.shape[0] == basis.shape[1]  # U U' is then the identity
    return tail_sums(steps, 0.0 if square else float(np.trace(scatter) - steps.sum()))


def least_errors(fitted: Matrix, left: float, most: int) -> Vector:
    """(K + 1,): the tail of the eigenvalues of what least squares fits, and what it leaves (Izenman 1975).

    Cost: eigenvalues of order m.
    """
    values = np.maximum(symmetric_values(fitted), 0.0)
    return tail_sums(values, left)[: most + 1]


def least_errors_on_cross(own: Callable[[], Matrix], between: Matrix, total: Matrix, most: int) -> Vector:
    """(K + 1,): the same where Y is another run's: `own` makes S (d, d), `between` is Y X', `total` Y Y'."""
    half = factor_ridge_of(own, 0.0).half(between.T)
    fitted = half.T @ half
    return least_errors(fitted, max(float(np.trace(total) - np.trace(fitted)), 0.0), most)
