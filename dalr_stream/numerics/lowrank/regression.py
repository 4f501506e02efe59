"""Rank-constrained regression of outputs Z on inputs X from their second moments, at every rank.

    published   U of Z Z',                      M = Z X' (S + lam I)^-1                       Eqs. 7-11 as printed
    optimal     U of M X Z',                    the same M                                    the minimiser of Eq. 7
    anchored    U of M (S + lam I) M',          M = W + (Z X' - W S)(S + lam I)^-1            shrinks towards W

and W ~ U_k U_k'M, with S = X X'. `anchored` minimises ||Z - C X||^2 + lam ||W - C||^2: its M is
(Z X' + lam W)(S + lam I)^-1, written so that what the data leave undetermined stays as it is in W. Where Z = W X,
M is W itself, and

    M (S + lam I) M' = Z Z' + lam W W'

needs no S and no inverse: the moments of the outputs are enough.

No inverse is formed: `psd` factors S + lam I, and says how.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Route
from dalr_stream.numerics.linalg.psd import Eigen, orient, symmetric_eigen, tail_sums, thin_qr
from dalr_stream.numerics.linalg.ridge_factor import SAFE_RECIPROCAL_CONDITION, RidgeFactor
from dalr_stream.numerics.lowrank.output_metric import OutputMetric
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.methods import Variant
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.statistics.products import symmetric
from dalr_stream.numerics.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class InputSums:
    """S = X X' about a centre, of which only `matrix` forms it."""

    moments: Moments
    centre: Vector
    """(d,): the mean where affine, else zeros."""
    diagonal: Vector
    """(d,): of S."""

    @classmethod
    def of(cls, moments: Moments, centre: Vector) -> InputSums:
        """Look at the diagonal once: of a matrix on disk that is a pass over it."""
        return cls(moments, centre, moments.products.diagonal(centre))

    def times(self, left: Matrix) -> Matrix:
        """(k, d): left S."""
        return self.moments.products.times(left, self.centre)

    def matrix(self) -> Matrix:
        """(d, d): S, a new array each time."""
        return self.moments.scatter_about(self.centre)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Unnormalised second moments of X and Z about one pair of centres, as far as they are known."""

    weight: Matrix
    """(p, d): W."""
    outputs: Matrix
    """(p, p): Z Z'."""
    inputs: InputSums | None = None
    """S = X X' (d, d). None where the outputs alone are known."""
    cross: Matrix | None = None
    """(p, d): Z X' of two runs. None where Z = W X."""
    own: Matrix | None = None
    """(p, p): W W', where it is already there."""

    @classmethod
    def of_inputs(cls, weight: Matrix, inputs: InputSums) -> Sums:
        """Z = W X. Cost: 2 p d^2 operations."""
        return cls(weight, inputs.moments.products.congruence(weight, inputs.centre), inputs)

    @property
    def known_inputs(self) -> InputSums:
        """S; raises InvalidInputError where it is not known."""
        if self.inputs is None:
            raise InvalidInputError("this regression needs the moments of the layer's inputs")
        return self.inputs

    @property
    def known_cross(self) -> Matrix:
        """Z X' of two runs."""
        if self.cross is None:
            raise InvalidInputError("this regression needs the moments between inputs and outputs of two runs")
        return self.cross

    def in_metric(self, metric: OutputMetric) -> Sums:
        """Return F W and the sums of F Z, of two runs."""
        weight, cross = metric.into(self.weight), metric.into(self.known_cross)
        return Sums(weight, metric.around(self.outputs), self.inputs, cross)

    def lam(self, ridge: Ridge) -> float:
        """Return lambda; where S is not known, by its mean as W weighs it, tr(W S W') / tr(W W')."""
        if (s := self.inputs) is not None:
            return ridge.of_matrix(s.diagonal, lambda: s.moments.squares_about(s.centre), s.moments.samples)
        size = _squares(self.weight)
        return ridge.of_scale(float(np.trace(self.outputs)) / size if size > 0.0 else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """One regression solved, at ranks up to K <= min(p, d)."""

    basis: Matrix
    """(p, K)"""
    down: Matrix
    """(K, d)"""
    objective: Vector
    """(K + 1,)"""
    error: float
    """||Z - U_K U_K'M X||^2."""
    error_bound: float | None
    """What ||Z - C X||^2 cannot be below for any C of rank K, where that came for nothing."""
    route: Route
    reason: str
    rank: int | None
    condition: float | None
    margin: float | None
    notes: tuple[str, ...] = ()


def anchored(sums: Sums, lam: float, most: int) -> Fit:
    """Minimise ||(W - C) X||^2 + lam ||W - C||^2: Z = W X, M = W. Objective: the tail of the eigenvalues.

    Cost: one eigendecomposition of order p and 2 p^2 d operations.
    """
    w = sums.weight
    own = w @ w.T if sums.own is None else sums.own
    matrix = lam * own
    matrix += sums.outputs
    eigen, notes = _ordered(matrix, own, most)
    full = eigen.values.size == min(w.shape)
    objective = _tail(eigen, 0.0 if full else float(np.trace(matrix)))
    down = eigen.vectors.T @ w
    size = float(np.trace(own))
    return Fit(
        basis=eigen.vectors,
        down=down,
        objective=objective,
        error=0.0 if full else float(objective[-1]) - lam * (size - float(np.vdot(down, down))),
        error_bound=0.0 if full else max(0.0, float(objective[-1]) - lam * size),
        route=Route.OUTPUTS,
        reason="Z = W X: the m x m moments of the outputs are enough",
        rank=eigen.known_rank,
        condition=_condition(eigen) if eigen.whole else None,
        margin=eigen.margin,
        notes=notes,
    )


def anchored_across(sums: Sums, lam: float, most: int, factor: RidgeFactor) -> Fit:
    """Minimise ||Z - C X||^2 + lam ||W - C||^2 where Z is another run's; `factor` is that of S + lam I.

    Objective: what M leaves, and the tail of the eigenvalues of M (S + lam I) M'. Cost: 6 p d^2 operations and one
    eigendecomposition of order min(p, d).
    """
    w, s, between = sums.weight, sums.known_inputs, sums.known_cross
    m = w + factor.pull_back(factor.half((between - s.times(w)).T)).T
    of_factor = facts(factor)
    del factor  # a matrix of order d, which nothing below needs
    turn, reached = _within_reach(m, most)
    seen = s.times(reached)
    matrix, own = symmetric(seen @ reached.T), reached @ reached.T
    left = float(np.trace(sums.outputs) - 2.0 * np.vdot(m, between) + np.vdot(seen, reached)) + lam * _squares(w - m)
    del seen
    matrix += lam * own
    eigen, notes = _ordered(matrix, own, most)
    basis, down = _turned(turn, eigen.vectors), eigen.vectors.T @ reached
    objective = left + _tail(eigen, 0.0 if eigen.values.size == min(w.shape) else float(np.trace(matrix)))
    distance = _squares(w) - float(np.vdot(down, 2.0 * basis.T @ w - down))
    error = float(objective[-1]) - lam * distance
    return Fit(basis, down, objective, error, None, *of_factor, notes)


def regression(sums: Sums, lam: float, most: int, factor: RidgeFactor, variant: Variant) -> Fit:
    """Solve published or optimal: M = Z X' (S + lam I)^-1, U of Z Z' (Eqs. 10-11), or of M X Z'.

    With Y'Y = M X Z' (`RidgeFactor.half_fit`) the objective of Eq. 7 is

        ||Z - C X||^2 + lam ||C||^2 = tr(Z Z') - sum_{i<=k} ||Y u_i||^2,     at full rank lam tr(M W') where Z = W X

    Cost: about 6 p d^2 operations and one eigendecomposition of order p, or of min(p, d) for optimal.
    """
    y = factor.half_fit(sums.weight, sums.known_inputs.times) if sums.cross is None else factor.half(sums.cross.T)
    turn, reached = _within_reach(y.T, most) if variant is Variant.OPTIMAL else (None, y.T)
    target = symmetric(reached @ reached.T) if variant is Variant.OPTIMAL else sums.outputs
    eigen = symmetric_eigen(target, most)
    basis = _turned(turn, eigen.vectors)
    half = (eigen.vectors.T @ reached).T  # in columns, where `pull_back` works in place
    del y, reached
    explained = np.einsum("ij,ij->j", half, half)
    down = np.ascontiguousarray(factor.pull_back(half, overwrite=True).T)
    full = sums.cross is None and eigen.values.size == min(sums.weight.shape)
    if full:
        last = lam * float(np.vdot(down, basis.T @ sums.weight)) if lam else 0.0
    else:
        last = float(np.trace(sums.outputs)) - float(explained.sum())
    return Fit(
        basis,
        down,
        tail_sums(explained, last),
        last - lam * _squares(down),
        None if sums.cross is not None else 0.0 if full else float(_tail(eigen, float(np.trace(target)))[-1]),
        *facts(factor),
    )


def facts(factor: RidgeFactor) -> tuple[Route, str, int | None, float, float]:
    """Return route, reason, rank, condition and margin of a factored S + lam I."""
    reason = {
        Route.CHOLESKY: f"S + ridge I factors with 1 / condition of {SAFE_RECIPROCAL_CONDITION:g} or more",
        Route.EIGEN: f"S + ridge I is singular or 1 / condition is below {SAFE_RECIPROCAL_CONDITION:g}",
    }[factor.route]
    return factor.route, reason, factor.rank, factor.condition, factor.margin


def _within_reach(m: Matrix, most: int) -> tuple[Matrix | None, Matrix]:
    """Return Q (p, d) and T (d, d) with M = Q T where M (p, d) has p > d, and d >= `most`; else None and M.

    All that M gives lies in the span of Q, so eigenvectors of order d are enough.
    """
    return thin_qr(m) if m.shape[0] > m.shape[1] >= most else (None, m)


def _turned(turn: Matrix | None, vectors: Matrix) -> Matrix:
    return vectors if turn is None else turn @ vectors


def _ordered(matrix: Matrix, own: Matrix, most: int) -> tuple[Eigen, tuple[str, ...]]:
    """Eigenvectors of `matrix`, those in which no output moves ordered by the weight alone, `own` = W W'.

    That is as an ever smaller ridge would: any basis of that space is a minimiser; this one is the limit lam -> 0+, so
    that inputs unlike the sample lose least, and a sample of one row gives truncated SVD.
    """
    eigen = symmetric_eigen(matrix, most)
    if eigen.rank < eigen.values.size and not eigen.whole:  # all of the idle directions compete for the places left
        eigen = symmetric_eigen(matrix)
    r = eigen.rank
    notes: tuple[str, ...] = ()
    idle = eigen.vectors[:, r:]
    if idle.shape[1] > 1 and own.any():
        turned = orient(idle @ symmetric_eigen(symmetric(idle.T @ own @ idle)).vectors)
        eigen = Eigen(eigen.values, np.concatenate([eigen.vectors[:, :r], turned], axis=1), eigen.margin)
        notes = (f"{idle.shape[1]} output directions do not move on these inputs: ordered by the weight alone",)
    return eigen.largest(most), notes


def _tail(eigen: Eigen, trace: float) -> Vector:
    """Sum of the eigenvalues after the first k, for k = 0..K; those that are not here from `trace`, 0 if none is."""
    values = np.maximum(eigen.values, 0.0)
    return tail_sums(values, max(trace - float(values.sum()), 0.0))


def _condition(eigen: Eigen) -> float:
    """Largest over smallest eigenvalue above rounding."""
    return float(eigen.values[0] / eigen.values[eigen.rank - 1]) if eigen.rank else 1.0


def _squares(matrix: Matrix) -> float:
    """||A||^2."""
    return float(np.vdot(matrix, matrix))
