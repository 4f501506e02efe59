"""What is left of Sigma once some nodes are known: R = Sigma - Sigma_FJ Sigma_JJ^-1 Sigma_JF, one node at a time.

Taking node p subtracts l l' with l = R_:p / sqrt(R_pp): a pivoted Cholesky factorisation whose pivot somebody else
chooses. It explains ||R_:p||^2 / R_pp of the trace, so the greedy rule of spectral pruning needs the norms of all
columns of R after every step. They follow in O(s^2) from

    ||R_:j - l_j l||^2 = ||R_:j||^2 - 2 l_j (R l)_j + l_j^2 ||l||^2

R itself is brought up to date once in BLOCK steps by one matrix product; in between R = R_0 - L L' with L the columns
of the block. At a block's end the rows of taken nodes are dropped and the norms are computed afresh.

The invariant: every gain handed out is right to GAIN_TOLERANCE of the largest. The recurrence cancels when a column
falls to little of what it was, and what was lost is bounded by EPSILON x the norm it fell from; a node for which that
could matter has its norm recomputed from its column before anyone compares it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from dalr_stream.numerics.psd import EPSILON
from dalr_stream.numerics.rank_k import mirror_lower

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

BLOCK = 128
"""Steps between two updates of R: long enough for a matrix product at full speed, short enough to drop rows soon."""

EXPLAINED = 1e-12
"""A node with R_jj below this share of Sigma_jj explains nothing more. Relative to the node's own Sigma_jj, so the
scale of a feature does not matter; a few thousand subtractions leave about 1e-14 of rounding there."""

SIGMA_ROUNDING = 64 * EPSILON
"""Share of Sigma_jj that may be rounding to begin with. A pivot that is itself a small remainder spreads its rounding:
node j inherits (R_jp / R_pp)^2 of p's. With two almost parallel nodes taken (R_pp at 9e-5 of Sigma_pp) residuals that
were zero on paper stood at 3e-12 of Sigma_jj, above the fixed share; the sum kept here covers that."""

GAIN_TOLERANCE = 1e-10
"""Gains closer than this share of the largest are a tie: their difference may be rounding."""


class SchurResidual:
    """R of a symmetric positive semi-definite Sigma (d, d), which it overwrites; nodes are taken one by one.

    Everything by node (`diagonal`, `open`, gains) goes by *position* among the nodes still here; `nodes` maps
    positions to nodes, ascending. Positions change in `take`. Sigma is scaled to a trace of 1.
    """

    def __init__(self, sigma: Matrix, most: int) -> None:
        d = sigma.shape[0]
        self.trace = float(np.trace(sigma))
        if self.trace > 0.0:
            sigma /= self.trace
        self.nodes: Indices = np.arange(d)
        self.diagonal: Vector = np.diagonal(sigma).copy()
        self._floor = EXPLAINED * self.diagonal
        self._rounding = SIGMA_ROUNDING * self.diagonal
        self.open = self.diagonal > 0.0
        self._taken = np.zeros(d, np.bool_)
        self._matrix = sigma
        self._factor = np.zeros((d, most), order="F")
        self._steps = self._used = 0
        self._block = self._norms = self._fell_from = np.zeros(0)
        self._start_block()

    @property
    def factor(self) -> Matrix:
        """(d, r): L, columns in the order of taking, so that Sigma = L L' + R."""
        return self._factor[:, : self._steps]

    def gains(self, candidates: NDArray[np.bool_]) -> Vector:
        """Share of the trace each candidate would explain; zero at other positions."""
        gains = self._estimates(candidates)
        doubtful = candidates & (self._fell_from * EPSILON > GAIN_TOLERANCE * gains.max() * self.diagonal)
        if doubtful.any():
            self._recompute(np.flatnonzero(doubtful))
            gains = self._estimates(candidates)
        return gains

    def take(self, position: int) -> float:
        """Take the node at `position`, which must be open; return the share of the trace it explains."""
        block, b = self._block[:, : self._used], self._used
        column = self._matrix[position] - block @ block[position]
        pivot = float(column[position])
        explained = float(column @ column / pivot)
        step = column / np.sqrt(pivot)
        step[self._taken] = 0.0
        image = self._times(step) - block @ (step @ block)
        self._norms += step * (step * (step @ step) - 2.0 * image)
        np.maximum(self._norms, 0.0, out=self._norms)
        self.diagonal -= step * step
        self._taken[position] = True
        self._rounding += step * step * (self._rounding[position] / pivot)
        self.open &= self.diagonal > np.maximum(self._floor, self._rounding)
        self.open[position] = False
        self._block[:, b] = step
        self._factor[self.nodes, self._steps] = step * np.sqrt(self.trace)
        self._used, self._steps = b + 1, self._steps + 1
        if self._used == BLOCK:
            self._end_block()
        return explained

    def _estimates(self, candidates: NDArray[np.bool_]) -> Vector:
        gains = np.zeros(self.nodes.size)
        np.divide(self._norms, self.diagonal, out=gains, where=candidates)
        return gains

    def _recompute(self, positions: Indices) -> None:
        """Take norms from the columns themselves: s b operations a column."""
        block = self._block[:, : self._used]
        for chunk in np.array_split(positions, -(-positions.size // BLOCK)):
            columns = self._matrix[chunk] - block[chunk] @ block.T
            columns[:, self._taken] = 0.0
            self._norms[chunk] = np.einsum("ij,ij->i", columns, columns)
        self._fell_from[positions] = self._norms[positions]

    def _times(self, vector: Vector) -> Vector:
        """R_0 times `vector`: the one step that reads the whole matrix."""
        product: Vector = blas.dsymv(1.0, self._matrix.T, vector)
        return product

    def _end_block(self) -> None:
        """Subtract L L', drop the taken nodes, start anew."""
        block = self._block
        updated = blas.dsyrk(-1.0, block, 1.0, self._matrix.T, overwrite_c=1).T
        keep = np.flatnonzero(~self._taken)
        self._matrix = _compact(updated, keep)
        self.nodes, self.open = self.nodes[keep], self.open[keep]
        self._floor, self._rounding = self._floor[keep], self._rounding[keep]
        self._taken = np.zeros(keep.size, np.bool_)
        mirror_lower(self._matrix)
        self.diagonal = np.diagonal(self._matrix).copy()
        self._start_block()

    def _start_block(self) -> None:
        self._used = 0
        self._block = np.zeros((self.nodes.size, BLOCK), order="F")
        self._norms = np.einsum("ij,ij->i", self._matrix, self._matrix)
        self._fell_from = self._norms.copy()


def _compact(matrix: Matrix, keep: Indices) -> Matrix:
    """Rows and columns `keep` (ascending) of the lower triangle of `matrix`, moved up within its own memory.

    Row by row this is safe, as no row moves past one still to be read, and it touches no fresh page.
    """
    size = keep.size
    flat = matrix.reshape(-1)
    for i, row in enumerate(keep):
        flat[i * size : i * size + i + 1] = matrix[row, keep[: i + 1]]
    return flat[: size * size].reshape(size, size)
