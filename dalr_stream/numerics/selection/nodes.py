"""Selections of nodes: one order that holds every size, and what is kept at one of them.

A selection is nested: an order in which nodes are taken, and the columns of a pivoted Cholesky factor of Sigma in that
order. Every size is a beginning of it, so nothing is solved again when another size is asked for. Records are validated
when made, and their arrays are never changed. Choosing the nodes is `greedy`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.linalg.psd import tail_sums
from dalr_stream.numerics.linalg.ridge_factor import factor_ridge
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.options import integer_within, require_share
from dalr_stream.numerics.types import Indices, Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class SelectedNodes:
    """A subset of nodes, and how to put the others back: phi ~ restore phi[kept] + offset."""

    kept: Indices
    """(k,) ascending: the order the nodes have in the layer."""
    restore: Matrix
    """(d, k): A_J, its columns in the order of `kept`; the row of a kept node is a unit row."""
    offset: Vector
    """(d,): center - restore center[kept]; zeros unless affine."""
    retention: float

    def __repr__(self) -> str:
        return f"SelectedNodes: {self.size} of {self.offset.size}"

    @property
    def size(self) -> int:
        """Nodes kept, k."""
        return self.kept.size


@dataclass(frozen=True, slots=True, eq=False)
class ChannelSelection:
    """Nested subsets of d nodes: the first k of `order`, for every k.

    With a `limit` the order, and everything that goes by size, ends there.

    Attributes
    ----------
    method
        The method that ordered them.
    order
        (s,): nodes in the order they are taken; s = d, or the limit.
    factor
        (d, r): columns of the pivoted Cholesky factor of Sigma; column j is zero at the nodes taken before the
        j-th. r, at most s, is the rank found. None for pure pruning, which restores nothing.
    retention
        (s,): share of tr(Sigma) explained (Eq. 2) at sizes 1..s, non-decreasing, at most 1; in a metric M of
        tr(M Sigma).
    center
        (d,): mean of the target where affine, else zeros.
    not_live
        Ascending: nodes that vary too little on the target to be compared (MoMaSP), or that explained nothing more
        when their turn came (spectral). They come last.
    diagnostics
        Rows, numerical rank and route of the solution, and what was noted on the way.
    """

    method: Method
    order: Indices
    factor: Matrix | None
    retention: Vector
    center: Vector
    not_live: Indices
    diagnostics: Diagnostics

    def __post_init__(self) -> None:
        d, s = self.center.size, self.order.size
        if s > d or self.retention.shape != (s,) or np.unique(self.order).size != s:
            raise InvalidInputError(f"selection: order must list distinct nodes of {d}, one retention each, got {s}")
        if self.factor is not None and (self.factor.shape[0] != d or self.factor.shape[1] > s):
            raise InvalidInputError(f"selection: factor must be {d} x at most {s}, got {self.factor.shape}")
        for array in (self.order, self.retention, self.center, self.not_live):
            array.setflags(write=False)
        if self.factor is not None:
            self.factor.setflags(write=False)

    def __repr__(self) -> str:
        return f"ChannelSelection by {self.method.value} of {self.nodes} nodes, sizes 1 to {self.order.size}"

    @property
    def nodes(self) -> int:
        """All nodes, d."""
        return self.center.size

    def at_size(self, k: int, *, ridge: float = 0.0, layer: str | None = None) -> SelectedNodes:
        """Keep the first `k` nodes of the order.

        Parameters
        ----------
        k
            Nodes to keep, 1..s.
        ridge
            Relative to the mean diagonal of Sigma. Above 0, A_J = Sigma_FJ (Sigma_JJ + ridge I)^-1 for the nodes that
            went. At 0, A_J fits the sample exactly once as many nodes are kept as there are rows, and other rows badly
            from a little before.
        layer
            Names the layer in messages.

        Returns
        -------
        SelectedNodes
            `.kept` (k,), and `.restore` (d, k), which puts the others back: for `compress`.

        Raises
        ------
        RankError
            Outside 1..s.
        InvalidInputError
            For a negative ridge.

        Notes
        -----
        A_J = Sigma_FJ Sigma_JJ^-1 = L_F L_J^-1 with L the first k columns of the factor: one triangular solve. Kept
        nodes that depend on the others have columns that are zero outside their own row. Cost: d k^2 operations.
        """
        prefix = "" if layer is None else f"layer {layer!r}: "
        k = integer_within(k, self.order.size, f"{prefix}number of kept nodes")
        if not 0.0 <= ridge < np.inf:
            raise InvalidInputError(f"{prefix}ridge must be a finite number >= 0, got {ridge}")
        taken = self.order[:k]
        restore = self._restore(taken, ridge)
        restore[taken] = np.eye(k)
        ascending = np.argsort(taken)
        kept, restore = taken[ascending], restore[:, ascending]
        offset = self.center - restore @ self.center[kept]
        return SelectedNodes(kept, restore, offset, float(self.retention[k - 1]))

    def _restore(self, taken: Indices, ridge: float) -> Matrix:
        """(d, k): A_J, also for the kept nodes, from the factor: Sigma_FJ = L L_J', Sigma_JJ = L_J L_J'."""
        k = taken.size
        restore = np.zeros((self.nodes, k))
        if self.factor is None or not self.factor.shape[1]:
            return restore
        r = min(k, self.factor.shape[1])
        columns = self.factor[:, :r]
        if ridge == 0.0:
            solved = scipy.linalg.solve_triangular(columns[taken[:r]], columns.T, lower=True, trans="T")
            restore[:, :r] = solved.T
            return restore
        of_taken = columns[taken]
        trace = self.diagnostics.trace or float(np.vdot(self.factor, self.factor)) / float(self.retention[-1])
        system = factor_ridge(of_taken.T @ of_taken, ridge * trace / self.nodes)
        return columns @ system.pull_back(system.half(of_taken.T))

    def at_retention(self, alpha: float, *, ridge: float = 0.0, layer: str | None = None) -> SelectedNodes:
        """Keep the fewest nodes of the order that retain `alpha` of the information, 0 < alpha <= 1.

        `ridge` and `layer` are as for `at_size`.

        Returns
        -------
        SelectedNodes
            As `at_size`.

        Raises
        ------
        InvalidInputError
            Outside that range, or where a limited order ends before.
        """
        prefix = "" if layer is None else f"layer {layer!r}: "
        require_share(alpha, f"{prefix}retention")
        k = int(np.searchsorted(self.retention, alpha)) + 1
        if k > self.order.size:
            raise InvalidInputError(
                f"{prefix}retention {alpha} is not reached by {self.order.size} nodes "
                f"({self.retention[-1]:.6f}): raise the limit"
            )
        return self.at_size(k, ridge=ridge, layer=layer)


def retention_of(gains: Vector, left: float, size: int) -> Vector:
    """Cumulated share of the whole at sizes 1..size: what is not explained yet is added up from the tail.

    Exactly 1 once nothing is left: then a retention of 1 is reached at the rank, not at d.
    """
    tail = tail_sums(np.maximum(gains, 0.0), left)
    retention = np.ones(size)
    if tail[0] > 0.0:
        retention[: gains.size] = 1.0 - tail[1:] / tail[0]
    return retention
