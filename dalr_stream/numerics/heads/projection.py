"""The projection of one head's dimensions that those who read them lose least by, for every size at once.

Whoever reads a head does so by inner products: a query's q'k, an output's W z. Let S = E[q q'], or W'W, sum up the
readers and R = E[k k'], or E[z z'], what is read. With k ~ P k the readers lose

    E |q'(I - P) k|^2 = tr S (I - P) R (I - P)'

and of all P of rank r the least is lost by P = U_r D_r, with S = L L', E the eigenvectors of L'R L in descending order,
D = E'L' and U = L'^-1 E: the truncated singular value decomposition of S^(1/2) R^(1/2), after Eckart and Young. What is
lost is the sum of the other eigenvalues. The readers see U_r' q, or W U_r, the others D_r k, or D_r z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.linalg.psd import symmetric_eigen, tail_sums
from dalr_stream.numerics.types import Matrix, Vector

FLOOR = 1e-10
"""Of the readers' largest eigenvalue, the least that a direction counts. At full size P = I to FLOOR^(-1/2) EPSILON,
2e-11, whatever nobody reads on this data; and what nobody reads goes first."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadProjection:
    """P = up down, of every rank: the first r columns and rows."""

    up: Matrix
    """(p, p): U."""
    down: Matrix
    """(p, p): D, the inverse of U."""
    losses: Vector
    """(p + 1,): tr S (I - P) R (I - P)' for P of rank 0..p."""


def joint_projection(readers: Matrix, read: Matrix) -> HeadProjection:
    """Return P for `readers` S (p, p) and what is `read` R (p, p), both positive semi-definite. Cost: about 20 p^3."""
    if not len(readers):  # every dimension is rotated
        return HeadProjection(readers, read, np.zeros(1))
    eigen = symmetric_eigen(readers)
    largest = max(float(eigen.values[0]), 0.0)
    roots = np.sqrt(np.maximum(eigen.values, FLOOR * largest or 1.0))
    left = eigen.vectors * roots  # L
    inner = symmetric_eigen(left.T @ read @ left)
    up, down = (eigen.vectors / roots) @ inner.vectors, inner.vectors.T @ left.T
    lost = np.maximum(inner.values, 0.0) * (largest > 0.0)
    return HeadProjection(up, down, tail_sums(lost, 0.0))
