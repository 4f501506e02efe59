"""Errors of nodes as something else sees them: gains in a metric M, R_p: M R_:p / R_pp in place of ||R_:p||^2 / R_pp.

With M = sum of W_r'G_r W_r over the readers r of the nodes that is what their outputs lose, weighted by G_r. Each inner
product of two columns of A becomes one in M, so beside A stands Y = A M, and everything about columns of R R that
`downdate` and `residual` do holds for columns of R M R:

    (A - l l')M = Y - l (M l)',      M A_:p = Y_p:,      v'M v = v'(M v)

so L is kept beside the M l of its columns, and M v beside v. Without a metric Y is A itself, and nothing is kept twice.
"""

from __future__ import annotations

import numpy as np

from dalr_stream.numerics.linalg.psd import EPSILON
from dalr_stream.numerics.selection.downdate import MeanPart
from dalr_stream.numerics.types import Indices, Matrix, Vector


class Seen:
    """Y = A M, for M = I: what the error of a node is to itself."""

    energy = 1.0
    """tr(M Sigma), where tr(Sigma) is 1."""

    def whole(self, matrix: Matrix) -> Matrix:
        """Y (s, s) as it was when the block began; `matrix` is A."""
        return matrix

    def columns(self, positions: int | Indices, columns: Matrix, left: Matrix) -> Matrix:  # noqa: ARG002  # as in a metric
        """M A_:p now, as rows for several; `columns` are A_:p now, `left` the rows of L at `positions`."""
        return columns

    def start(self, mean: Vector) -> Vector:
        """M v for v = `mean`."""
        return mean

    def take(self, seen: Vector, number: int) -> None:
        """Keep M l of the step of that `number`."""

    def compact(self, keep: Indices, left: Matrix) -> None:
        """Subtract L (M L)' and drop taken nodes."""

    def left(self, open_trace: float, steps: Matrix, mean: float) -> float:  # noqa: ARG002  # as in a metric
        """tr(M R) now; `open_trace` is tr(R) of nodes that still explain something, `steps` L, `mean` v'M v."""
        return open_trace


class SeenBy(Seen):
    """The same in a metric."""

    def __init__(self, covariance: Matrix, metric: Matrix, energy: float, room: int) -> None:
        """`covariance` is A_0; `room` how many steps a block may have. Cost: 2 d^3 operations and d^2 doubles."""
        self.energy = energy
        self._metric: Matrix | None = metric
        self._matrix = covariance @ metric
        self._matrix /= energy
        self._left = np.zeros((len(metric), room), order="F")

    def whole(self, matrix: Matrix) -> Matrix:  # noqa: ARG002  # not A
        """Y."""
        return self._matrix

    def columns(self, positions: int | Indices, columns: Matrix, left: Matrix) -> Matrix:  # noqa: ARG002  # not A
        """Rows of Y, less the steps since the block began."""
        now: Matrix = self._matrix[positions] - left @ self._left[:, : left.shape[-1]].T
        return now

    def start(self, mean: Vector) -> Vector:
        """M v, the only time that M itself is read."""
        metric, self._metric = self._metric, None
        return mean if metric is None else metric @ mean / self.energy

    def take(self, seen: Vector, number: int) -> None:
        """Keep it beside L."""
        self._left[:, number] = seen

    def compact(self, keep: Indices, left: Matrix) -> None:
        """Y of the nodes that stay; columns of the others meet zeros of A only."""
        seen = self._left[keep, : left.shape[1]]
        self._matrix = self._matrix[np.ix_(keep, keep)]
        self._matrix -= left @ seen.T
        self._left = np.zeros((keep.size, self._left.shape[1]), order="F")

    def left(self, open_trace: float, steps: Matrix, mean: float) -> float:  # noqa: ARG002  # not of R
        """Diagonal of Y, less the steps, and the mean's part."""
        taken = np.einsum("ij,ij->i", steps, self._left[:, : steps.shape[1]])
        return max(float((np.diagonal(self._matrix) - taken).sum()) + mean, 0.0)


def seen_by(metric: Matrix | None, covariance: Matrix, mean: Vector, room: int) -> tuple[Seen, tuple[str, ...]]:
    """Return what is seen in a metric of Sigma = C + m m', of trace 1, and what is to be said of it."""
    if metric is None:
        return Seen(), ()
    energy = float(np.vdot(metric, covariance) + mean @ metric @ mean)
    if energy <= EPSILON * len(metric) * float(np.trace(metric)):
        return Seen(), ("nothing that reads the nodes sees them move: compared by themselves",)
    return SeenBy(covariance, metric, energy, room), ()


def doubts(columns: Matrix, seen: Matrix, norms: Vector, mean: MeanPart) -> tuple[Vector, Vector]:
    """Return the rounding of the products of columns with themselves, which are `norms`, and with the mean."""
    if seen is columns:
        return EPSILON * norms, EPSILON * np.sqrt(norms * mean.squared)
    lengths, theirs = (np.sqrt(np.einsum("ij,ij->i", rows, rows)) for rows in (columns, seen))
    return EPSILON * lengths * theirs, EPSILON * lengths * float(np.linalg.norm(mean.seen))
