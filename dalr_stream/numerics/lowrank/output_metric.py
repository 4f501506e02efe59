"""The metric in which a layer's outputs are compared: how much the loss feels an error in each direction of them.

With g the gradient of the loss by the layer's outputs, an error e of them costs about 1/2 (g'e)^2, and on average
1/2 e'G e with G = E[g g'], not centred. Regression in that metric is plain regression of F Y with F'F = G:

    tr(G (W - C) S (W - C)') = ||F (W - C) X||^2

so the solvers see F W in place of W, and what they find is brought back by F^-1. G is singular as a matter of course:
outputs that nothing reads, fewer gradients than outputs. Its ridge, gamma, says how much an error counts where no
gradient was seen; without one such directions weigh `LEAST_WEIGHT` of the one that is felt most, so F^-1 is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.psd import numerical_rank, symmetric_eigen
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector

DEFAULT_GRADIENT_RIDGE = Ridge.relative(1e-2)

LEAST_WEIGHT = 1e-10
"""Of the largest eigenvalue of G. Factors come back through its root, 1e-5: five digits are lost of sixteen."""

LEAST_FELT = np.finfo(np.float64).tiny / LEAST_WEIGHT
"""Of the largest eigenvalue: below it weights would not be normal numbers, nor F^-1 finite."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputMetric:
    """F = diag(weights)^1/2 V', so that F'F = G + gamma I, by the eigenvectors V of G."""

    weights: Vector
    """(m,): eigenvalues of G + gamma I, none of them zero."""
    vectors: Matrix
    """(m, m): V."""
    gamma: float
    rank: int
    """Of G, to rounding."""

    @classmethod
    def of(cls, gradients: Moments, ridge: Ridge, prefix: str = "") -> OutputMetric:
        """Return the metric of a layer's output gradients. Cost: an eigendecomposition of order m.

        Where every gradient is zero, or next to it, all directions weigh alike. `prefix` names the layer in messages.
        """
        if gradients.count == 0:
            raise InvalidInputError(f"{prefix}gradients must come from at least one row, got none: accumulate some")
        eigen = symmetric_eigen(gradients.second_moment)
        values = np.maximum(eigen.values, 0.0)
        rank = numerical_rank(eigen.values) if values[0] > LEAST_FELT else 0
        gamma = ridge.of_moments(gradients, np.zeros(gradients.features)) / gradients.count
        weights = np.maximum(values + gamma, LEAST_WEIGHT * (values[0] + gamma))
        return cls(weights if rank else np.ones(values.size), eigen.vectors, gamma, rank)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a solution says of it."""
        m = self.weights.size
        if self.rank == m:
            return ()
        if self.rank == 0:
            return ("all gradients are zero: every output counts alike",)
        return (f"gradients of rank {self.rank} for {m} outputs: the others weigh {self.weights[-1]:.1e} each",)

    def into(self, matrix: Matrix) -> Matrix:
        """F B (m, k). Cost: 2 m^2 k operations."""
        seen: Matrix = np.sqrt(self.weights)[:, None] * (self.vectors.T @ matrix)
        return seen

    def back(self, matrix: Matrix) -> Matrix:
        """F^-1 B (m, k)."""
        return self.vectors @ (matrix / np.sqrt(self.weights)[:, None])

    def around(self, matrix: Matrix) -> Matrix:
        """F B F' (m, m), symmetric for a symmetric B."""
        both = self.into(self.into(matrix).T)
        return 0.5 * (both + both.T)
