"""The square-root route: a triangle R with R'R = X X', from a streaming QR of the rows, and its singular values.

Forming X X' squares the condition: directions below 1.5e-8 of the largest are rounding in it. The triangle keeps them
down to 2e-16, at about 3.6 times the cost of the sums, and it is not additive over shards as they are. So it is the
reference for ill-conditioned layers, offered where the rows are at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Route
from dalr_stream.numerics.linalg.psd import EPSILON, require_finite, tail_sums, thin_svd
from dalr_stream.numerics.linalg.ridge_factor import EigenFactor
from dalr_stream.numerics.lowrank.regression import Fit
from dalr_stream.numerics.methods import Variant
from dalr_stream.numerics.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """Square root of the second moments of `count` rows about one centre."""

    count: int
    mean: Vector
    """(d,): of the rows."""
    triangle: Matrix
    """(r, d), r <= d: R'R = sum of (x - centre)(x - centre)'."""

    def squares(self) -> float:
        """||R'R||^2."""
        gram = self.triangle @ self.triangle.T
        return float(np.vdot(gram, gram))

    def factor(self, lam: float) -> EigenFactor:
        """Factor R'R + lam I; singular values above max(r, d) x EPSILON x the largest are kept. Cost: 6 r d^2."""
        svd = thin_svd(self.triangle)
        s = svd.values
        rank = int(np.count_nonzero(s > max(self.triangle.shape) * EPSILON * s.max(initial=0.0)))
        return EigenFactor(s[:rank] ** 2, svd.right[:rank].T, lam, 0.0)


def root_of_rows(rows: Iterable[ArrayLike], *, affine: bool = True) -> Root:
    """Reduce blocks of rows (t, d) to a triangle, about the mean where `affine`, else about zero.

    A column of ones goes first: its row of the triangle takes up the mean, and the rest is about it, in one pass.
    Raises InvalidInputError without rows and for NaN or Inf. Cost: 2 d^2 operations per row, and (t + d) d doubles.
    """
    count, triangle = 0, np.zeros((0, 0))
    for block in rows:
        x = np.asarray(block, dtype=np.float64)
        require_finite(x, "rows")
        count += len(x)
        joined = np.concatenate([np.ones((len(x), 1)), x], axis=1)
        stacked = joined if not triangle.size else np.concatenate([triangle, joined])
        triangle = scipy.linalg.qr(stacked, mode="r", check_finite=False)[0][: stacked.shape[1]]
    if count == 0:
        raise InvalidInputError("rows: at least one is needed, got none")
    mean = triangle[0, 1:] / triangle[0, 0]
    return Root(count, mean, triangle[1:, 1:] if affine else triangle[:, 1:])


def rooted_regression(weight: Matrix, root: Root, lam: float, most: int, variant: Variant) -> Fit:
    """Solve published or optimal with Z = W X as `regression` does, with singular values in place of eigenvalues."""
    factor = root.factor(lam)
    y = factor.half_fit(weight, lambda left: (left @ root.triangle.T) @ root.triangle)
    z = np.sqrt(factor.values)[:, None] * (factor.vectors.T @ weight.T)
    fitted = y if variant is Variant.OPTIMAL else z
    p = len(weight)
    square = np.pad(fitted.T, ((0, 0), (0, max(0, p - len(fitted)))))  # so that there are p left vectors
    svd = thin_svd(square)
    basis = svd.left[:, :most]
    half = y @ basis
    down = np.ascontiguousarray(factor.pull_back(half).T)
    explained = np.einsum("ij,ij->j", half, half)
    full = most == min(weight.shape)
    left = lam * float(np.vdot(down, basis.T @ weight)) if lam else 0.0
    last = left if full else float(np.vdot(z, z)) - float(explained.sum())
    return Fit(
        basis=basis,
        down=down,
        objective=tail_sums(explained, last),
        error=last - lam * float(np.vdot(down, down)),
        error_bound=float(np.sum(svd.values[most:] ** 2)),
        route=Route.ROOT,
        reason="asked for: a streaming QR of the rows and its singular values",
        rank=factor.rank,
        condition=factor.condition,
        margin=0.0,
    )
