"""How differently the nodes respond on source and target: the regulariser of MoMaSP (momasp.md, Eqs. 3 and 4).

With delta the difference of means and E = S o (C_s - C_t), S_ij = (C_t,ii C_t,jj)^(-1/4):

    node    R_j = |delta_j| + ||E_j,F||                                computed once
    subset  R_j = ||delta_{J+j}|| + ||E restricted to J + j||_F        O(d) per step: sums over J are carried along

A node that hardly varies on the target would make every R_j infinite, or so large that the maximum it is divided by
drowns the others; such nodes are not *live*: their rows and columns leave S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.methods import Form
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector

LIVE_SHARE = 1e-3
"""tau: live nodes have more than this share of the median positive variance on the target. A node's own entry of E
grows as C_t,jj^(-1/2), so that one at the border counts about 30 times; a unit that fired once in some thousand
samples falls below it."""


RUN_ROWS = 32
"""Rows of E made at a time: they stay in cache at a few thousand nodes."""


class Penalty(Protocol):
    """R_j for each of the d nodes; `take` tells it which nodes are in the subset J."""

    def values(self) -> Vector:
        """R_j (d,), not negative."""

    def take(self, node: int) -> None:
        """Add `node` to J."""


@dataclass(frozen=True, slots=True, eq=False)
class Discrepancy:
    """delta, and E = S o (C_s - C_t), E_ij = scale_i (C_s - C_t)_ij scale_j, of which rows are made when asked for.

    `centered` takes C about the mean; otherwise C is E[phi phi'], as the paper's Sigma is.
    """

    target: Moments
    source: Moments
    centered: bool
    scale: Vector
    """(d,): C_t,jj^(-1/4) of live nodes, 0 of others."""
    live: NDArray[np.bool_]
    """(d,)"""

    @classmethod
    def of(cls, target: Moments, source: Moments, *, centered: bool) -> Discrepancy:
        """Compare two domains."""
        variance = _own(target, centered=centered)
        live = live_nodes(variance)
        scale = np.zeros(live.size)
        scale[live] = variance[live] ** -0.25
        return cls(target, source, centered, scale, live)

    @property
    def mean_gap(self) -> Vector:
        """(d,): mean_s - mean_t."""
        return self.source.mean - self.target.mean

    @property
    def diagonal(self) -> Vector:
        """E_jj (d,)."""
        gap = _own(self.source, centered=self.centered) - _own(self.target, centered=self.centered)
        return self.scale**2 * gap

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows `start` to `stop` of E. Cost: d per row."""
        rows = self.source.scatter[start:stop] / self.source.count
        rows -= self.target.scatter[start:stop] / self.target.count
        if not self.centered:
            for moments, sign in ((self.source, 1.0), (self.target, -1.0)):
                rows += np.outer(sign * moments.mean[start:stop], moments.mean)
        rows *= self.scale
        rows *= self.scale[start:stop, None]
        return rows

    def row_norms(self) -> Vector:
        """||E_j,F|| (d,); 0 for nodes that are not live. Cost: d^2."""
        d = self.scale.size
        runs = (self.rows(start, min(start + RUN_ROWS, d)) for start in range(0, d, RUN_ROWS))
        norms: Vector = np.sqrt(np.concatenate([np.einsum("ij,ij->i", run, run) for run in runs]))
        return norms


class NodePenalty:
    """Eq. 4. Cost: d^2 once."""

    def __init__(self, discrepancy: Discrepancy) -> None:
        self._values: Vector = np.abs(discrepancy.mean_gap) + discrepancy.row_norms()

    def values(self) -> Vector:
        """R_j (d,)."""
        return self._values

    def take(self, node: int) -> None:
        """Nothing changes: a node's R_j does not depend on J."""


class SubsetPenalty:
    """Eq. 3. Cost: d per step."""

    def __init__(self, discrepancy: Discrepancy) -> None:
        self._gaps = discrepancy.mean_gap**2
        self._discrepancy = discrepancy
        self._own = discrepancy.diagonal**2
        self._cross = np.zeros_like(self._own)
        self._gap_of_subset = 0.0
        self._norm_of_subset = 0.0

    def values(self) -> Vector:
        """R_{J+j} (d,); of no use at nodes of J."""
        squares = self._norm_of_subset + 2.0 * self._cross + self._own
        joined: Vector = np.sqrt(self._gap_of_subset + self._gaps) + np.sqrt(squares)
        return joined

    def take(self, node: int) -> None:
        """Add `node` to J."""
        self._gap_of_subset += float(self._gaps[node])
        self._norm_of_subset += float(2.0 * self._cross[node] + self._own[node])
        self._cross += self._discrepancy.rows(node, node + 1)[0] ** 2


def _own(moments: Moments, *, centered: bool) -> Vector:
    """C_jj (d,)."""
    return moments.variance if centered else moments.variance + moments.mean**2


def live_nodes(variance: Vector) -> NDArray[np.bool_]:
    """Nodes above LIVE_SHARE of the median positive `variance` (d,); none where no variance is positive."""
    positive = variance[variance > 0.0]
    if positive.size == 0:
        return np.zeros(variance.size, np.bool_)
    return variance > LIVE_SHARE * float(np.median(positive))


def penalty(target: Moments, source: Moments, *, form: Form, centered: bool) -> tuple[Penalty, NDArray[np.bool_]]:
    """Return the regulariser and which nodes are live; see `Discrepancy` for `centered`."""
    discrepancy = Discrepancy.of(target, source, centered=centered)
    return (NodePenalty(discrepancy) if form is Form.NODE else SubsetPenalty(discrepancy)), discrepancy.live
