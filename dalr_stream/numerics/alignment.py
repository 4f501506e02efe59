"""How differently the nodes respond on source and target: the regulariser of MoMaSP (momasp.md, Eqs. 3 and 4).

With delta the difference of means and E = S o (C_s - C_t), S_ij = (C_t,ii C_t,jj)^(-1/4):

    node    R_j = |delta_j| + ||E_j,F||                                computed once
    subset  R_j = ||delta_{J+j}|| + ||E restricted to J + j||_F        O(d) a step: sums over J are carried along

A node that hardly varies on the target would make every R_j infinite, or so large that the maximum it is divided by
drowns the others; such nodes are not *live*: their rows and columns leave S.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.moments import Moments

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

LIVE_SHARE = 1e-3
"""tau: live nodes have more than this share of the median positive variance on the target. A node's own entry of E
grows as C_t,jj^(-1/2), so that one at the border counts about 30 times; a unit that fired once in some thousand
samples falls below it."""


class Form(StrEnum):
    """Eq. 4, a node alone, or Eq. 3, the subset it would join."""

    NODE = "node"
    SUBSET = "subset"


class Penalty(Protocol):
    """R_j for each of the d nodes; told of each node that is taken."""

    def values(self) -> Vector:
        """R_j (d,), not negative."""

    def take(self, node: int) -> None:
        """Add `node` to J."""


@dataclass(frozen=True, slots=True, eq=False)
class Discrepancy:
    """delta, and E = S o (C_s - C_t) as its two factors: E_ij = scale_i difference_ij scale_j."""

    mean_gap: Vector
    """(d,): mean_s - mean_t."""
    difference: Matrix
    """(d, d): C_s - C_t."""
    scale: Vector
    """(d,): C_t,jj^(-1/4) of live nodes, 0 of others."""
    live: NDArray[np.bool_]
    """(d,)"""

    @classmethod
    def of(cls, target: Moments, source: Moments, *, centered: bool) -> Discrepancy:
        """Compare two domains. Cost: d^2, and 2 d^2 doubles.

        `centered` takes C about the mean; otherwise C is E[phi phi'], as the paper's Sigma is.
        """
        c_t = target.covariance if centered else target.second_moment
        live = live_nodes(np.diagonal(c_t))
        scale = np.zeros(live.size)
        scale[live] = np.diagonal(c_t)[live] ** -0.25
        difference = source.covariance if centered else source.second_moment
        difference -= c_t
        return cls(source.mean - target.mean, difference, scale, live)

    def row_norms(self) -> Vector:
        """||E_j,F|| (d,); 0 for nodes that are not live. Cost: d^2."""
        squares = np.einsum("ij,ij,j->i", self.difference, self.difference, self.scale**2)
        norms: Vector = self.scale * np.sqrt(squares)
        return norms


class NodePenalty:
    """Eq. 4. Cost: d^2 once."""

    def __init__(self, found: Discrepancy) -> None:
        self._values: Vector = np.abs(found.mean_gap) + found.row_norms()

    def values(self) -> Vector:
        """R_j (d,)."""
        return self._values

    def take(self, node: int) -> None:
        """Nothing changes: a node's R_j does not depend on J."""


class SubsetPenalty:
    """Eq. 3. Cost: d a step."""

    def __init__(self, found: Discrepancy) -> None:
        self._gaps = found.mean_gap**2
        self._difference, self._scale = found.difference, found.scale
        self._own = (found.scale**2 * np.diagonal(found.difference)) ** 2
        self._cross = np.zeros(found.scale.size)
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
        self._cross += (self._difference[node] * self._scale * self._scale[node]) ** 2


def live_nodes(variance: Vector) -> NDArray[np.bool_]:
    """Nodes above LIVE_SHARE of the median positive `variance` (d,); none where no variance is positive."""
    positive = variance[variance > 0.0]
    if positive.size == 0:
        return np.zeros(variance.size, np.bool_)
    return variance > LIVE_SHARE * float(np.median(positive))


def penalty(target: Moments, source: Moments, *, form: Form, centered: bool) -> tuple[Penalty, NDArray[np.bool_]]:
    """Return the regulariser and which nodes are live; see `Discrepancy.of` for `centered` and the cost."""
    found = Discrepancy.of(target, source, centered=centered)
    return (NodePenalty(found) if form is Form.NODE else SubsetPenalty(found)), found.live
