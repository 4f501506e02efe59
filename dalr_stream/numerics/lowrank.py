"""Low-rank layers: truncated SVD, and domain-adaptive low rank (DALR).

All of them solve a rank-constrained regression of the outputs Z = W X on the inputs X from the moments of X alone:
no data, no inverse, every rank from one decomposition. With S = X X' (raw, or about the mean where affine):

    published   U of Z Z' = W S W',                 M = W S (S + ridge I)^-1      Eqs. 7-11 as printed
    optimal     U of M X Z' = W S (S + ridge I)^-1 S W',  the same M              the minimiser of Eq. 7
    anchored    U of Z Z' + ridge W W',             M = W                         shrinks towards W, not towards 0

and W ~ U_k U_k'M. `anchored` minimises ||(W - C) X||^2 + ridge ||W - C||^2: exact at full rank, truncated SVD as the
ridge grows. A layer with more outputs than inputs is first turned onto the d directions it can reach (W = Q T), so
that full rank is exact even where the data say nothing.

Source: Masana et al., Domain-adaptive deep network compression, ICCV 2017, section 4.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dalr_stream.errors import FewSamplesWarning, InvalidInputError
from dalr_stream.numerics.choices import parse_choice
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.moments import Moments
from dalr_stream.numerics.psd import (
    Eigen,
    Route,
    column_signs,
    factor_ridge,
    numerical_rank,
    orient,
    require_finite,
    symmetric_eigen,
    thin_qr,
    thin_svd,
    threads_for,
)
from dalr_stream.numerics.solution import Diagnostics, LowRankFactors, tail_sums

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ridge:
    """The lambda of Eq. 7, told in one of two ways. Make one with `Ridge.relative` or `Ridge.absolute`."""

    value: float
    is_relative: bool

    def __post_init__(self) -> None:
        if not 0.0 <= self.value < np.inf:
            raise InvalidInputError(f"ridge must be a finite number >= 0, got {self.value}")

    @classmethod
    def relative(cls, share: float) -> Ridge:
        """`share` x the mean diagonal of the matrix being solved: means the same for any number of samples."""
        return cls(float(share), is_relative=True)

    @classmethod
    def absolute(cls, value: float) -> Ridge:
        """`value` itself, on unnormalised sums, as in the authors' code: its meaning changes with n."""
        return cls(float(value), is_relative=False)

    def value_for(self, diagonal: Vector) -> float:
        """Return the lambda to add to a matrix with this `diagonal` (d,)."""
        return self.value * float(np.mean(diagonal)) if self.is_relative else self.value


DEFAULT_RIDGE = Ridge.relative(1e-3)


class Variant(StrEnum):
    """Which of the rank-constrained regressions of the module's opening."""

    PUBLISHED = "published"
    OPTIMAL = "optimal"
    ANCHORED = "anchored"


_METHODS = {
    (Variant.PUBLISHED, False): Method.DALR_PUBLISHED,
    (Variant.PUBLISHED, True): Method.DALR_PUBLISHED_AFFINE,
    (Variant.OPTIMAL, False): Method.DALR_OPTIMAL,
    (Variant.OPTIMAL, True): Method.DALR_OPTIMAL_AFFINE,
    (Variant.ANCHORED, False): Method.DALR_ANCHORED,
    (Variant.ANCHORED, True): Method.DALR_ANCHORED_AFFINE,
}


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """One regression solved: basis (p, p), down (p, d), objective (p + 1,), for a weight with p <= d rows."""

    basis: Matrix
    down: Matrix
    objective: Vector
    route: Route
    rank: int | None
    notes: tuple[str, ...] = ()


def truncated_svd(
    weight: ArrayLike, bias: ArrayLike | None, moments: Moments | None = None, *, compensate_bias: bool = False
) -> LowRankFactors:
    """Truncate the SVD of the weight, at every rank (section 4.1); with Eq. 4's bias where `compensate_bias`.

    W ~ U_k diag(s_k) V_k' whatever the data; the compensated bias is b + (W - W_k) mean(x).

    Parameters
    ----------
    weight
        (m, d), any float dtype; solved in float64.
    bias
        (m,), or None for none.
    moments
        Of the layer's inputs. Needed for the compensated bias alone.

    Raises InvalidInputError where shapes disagree, a value is not finite, or moments are missing.
    Cost: one SVD, about 6 m d min(m, d) operations and more.
    """
    w, b = _layer(weight, bias)
    d = w.shape[1]
    if moments is not None:
        _require_fit(w, moments)
    elif compensate_bias:
        raise InvalidInputError("bias compensation needs the moments of the layer's inputs, got none")
    svd = thin_svd(w)
    center = moments.mean.copy() if moments is not None and compensate_bias else np.zeros(d)
    seen = (0, 0) if moments is None else (moments.count, moments.samples)
    return LowRankFactors(
        method=Method.SVD_BC if compensate_bias else Method.SVD,
        weight=w,
        basis=svd.left,
        down=svd.values[:, None] * svd.right,
        center=center,
        offset=b + w @ center,
        objective=tail_sums(svd.values**2, 0.0),
        diagnostics=Diagnostics(*seen, d, numerical_rank(svd.values), 0.0, Route.SVD.value),
    )


def dalr(
    weight: ArrayLike,
    bias: ArrayLike | None,
    moments: Moments,
    *,
    ridge: Ridge = DEFAULT_RIDGE,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    compensate_bias: bool = False,
) -> LowRankFactors:
    """Domain-adaptive low rank: the weight's best stand-in, at every rank, on the inputs that `moments` describe.

    Parameters
    ----------
    weight
        (m, d), any float dtype; solved in float64.
    bias
        (m,), or None for none.
    moments
        Of the layer's inputs on the target domain.
    ridge
        `Ridge.relative(r)` is r x the mean diagonal of S, the inputs' moments, for all three variants.
    variant
        `Variant` or its value.
    affine
        Centre the moments and give each rank its optimal bias. By default all but `published`, printed without.
    compensate_bias
        Eq. 4's bias on raw moments, "DALR + BC" of the tables: with `published` and without `affine` only, as
        affine contains it.

    Fewer rows than features leave S singular: `published` and `optimal` then fit the sample perfectly at a small
    ridge, so FewSamplesWarning is given and noted. `anchored` needs no such warning: what the data do not determine
    stays as it was in W. Singular S at ridge 0 gives the solution of minimum norm; the route is in the diagnostics.

    Raises InvalidInputError where shapes disagree, a value is not finite, there are no rows, or options conflict.
    Cost: one eigendecomposition of order min(m, d), 2 m d^2 + 2 m^2 d operations; `published` and `optimal` about
    4 m d^2 + d^3 / 3 more. Memory: S and a few m x d.
    """
    w, b = _layer(weight, bias)
    _require_fit(w, moments)
    chosen = parse_choice(Variant, variant, "variant")
    centred = chosen is not Variant.PUBLISHED if affine is None else affine
    if compensate_bias and (centred or chosen is not Variant.PUBLISHED):
        raise InvalidInputError(
            f"compensate_bias goes with the published variant and affine=False, got variant={chosen.value!r}, "
            f"affine={centred}: affine=True is the optimal bias for any variant"
        )
    s = moments.scatter if centred else moments.gram
    lam = ridge.value_for(np.diagonal(s))
    notes = _notes_on(moments, chosen)
    q, t = thin_qr(w) if w.shape[0] > w.shape[1] else (None, w)
    with threads_for(w.shape[1]):
        fit = _anchored(t, s, lam) if chosen is Variant.ANCHORED else _regression(t, s, lam, chosen)
    basis = fit.basis if q is None else q @ fit.basis
    signs = column_signs(basis)
    center = moments.mean.copy() if centred or compensate_bias else np.zeros(w.shape[1])
    return LowRankFactors(
        method=Method.DALR_PUBLISHED_BC if compensate_bias else _METHODS[chosen, centred],
        weight=w,
        basis=basis * signs,
        down=fit.down * signs[:, None],
        center=center,
        offset=b + w @ center,
        objective=fit.objective,
        diagnostics=Diagnostics(
            moments.count, moments.samples, moments.features, fit.rank, lam, fit.route.value, notes + fit.notes
        ),
    )


def _anchored(w: Matrix, s: Matrix, lam: float) -> _Fit:
    """Minimise ||(W - C) X||^2 + lam ||W - C||^2: U of Z Z' + lam W W', M = W. Objective: the tail of eigenvalues."""
    own = w @ w.T
    eigen, notes = _by_weight_where_idle(symmetric_eigen(_symmetric(w @ s @ w.T) + lam * own), own)
    objective = tail_sums(np.maximum(eigen.values, 0.0), 0.0)
    return _Fit(eigen.vectors, eigen.vectors.T @ w, objective, Route.OUTPUTS, eigen.rank, notes)


def _by_weight_where_idle(eigen: Eigen, own: Matrix) -> tuple[Eigen, tuple[str, ...]]:
    """Order the directions in which no output moves by the weight alone, as an ever smaller ridge would.

    Any basis of that space is a minimiser; this one is the limit lam -> 0+, so that inputs unlike the sample lose
    least, and a sample of one row gives truncated SVD. `own` is W W'.
    """
    r = eigen.rank
    idle = eigen.vectors[:, r:]
    if idle.shape[1] < 2 or not own.any():
        return eigen, ()
    turned = idle @ symmetric_eigen(_symmetric(idle.T @ own @ idle)).vectors
    note = f"{idle.shape[1]} output directions do not move on these inputs: ordered by the weight alone"
    return Eigen(eigen.values, np.concatenate([eigen.vectors[:, :r], orient(turned)], axis=1)), (note,)


def _regression(w: Matrix, s: Matrix, lam: float, variant: Variant) -> _Fit:
    """Solve published or optimal: M = W S (S + lam I)^-1, U of Z Z' (Eqs. 10-11), or of M X Z'.

    With Y'Y = M X Z' (`RidgeFactor.half_fit`) the objective of Eq. 7 is

        ||Z - C X||^2 + lam ||C||^2 = tr(Z Z') - sum_{i<=k} ||Y u_i||^2,     at full rank lam tr(M W')
    """
    factor = factor_ridge(s, lam)
    y = factor.half_fit(w)
    fitted = y.T @ y
    eigen = symmetric_eigen(fitted if variant is Variant.OPTIMAL else _symmetric(w @ s @ w.T))
    half = y @ eigen.vectors
    down = factor.pull_back(half).T
    last = lam * float(np.vdot(down, eigen.vectors.T @ w)) if lam else 0.0
    objective = tail_sums(np.einsum("ij,ij->j", half, half), last)
    return _Fit(eigen.vectors, np.ascontiguousarray(down), objective, factor.route, factor.rank)


def _symmetric(matrix: Matrix) -> Matrix:
    """Half of `matrix` and its transpose: products that are symmetric on paper are so only to rounding."""
    return 0.5 * (matrix + matrix.T)


def _layer(weight: ArrayLike, bias: ArrayLike | None) -> tuple[Matrix, Vector]:
    """Return weight (m, d) and bias (m,) as float64 copies, validated."""
    w = np.array(weight, dtype=np.float64, order="C")
    if w.ndim != 2 or 0 in w.shape:
        raise InvalidInputError(f"weight must be a matrix of outputs x inputs, got shape {w.shape}")
    b = np.zeros(w.shape[0]) if bias is None else np.array(bias, dtype=np.float64)
    if b.shape != (w.shape[0],):
        raise InvalidInputError(f"bias must have one entry an output of the weight {w.shape}, got shape {b.shape}")
    require_finite(w, "weight")
    require_finite(b, "bias")
    return w, b


def _require_fit(w: Matrix, moments: Moments) -> None:
    """Raise where `moments` are not those of the layer's inputs, or of no rows."""
    if moments.features != w.shape[1]:
        raise InvalidInputError(f"moments of {moments.features} features do not fit a weight of shape {w.shape}")
    if moments.count == 0:
        raise InvalidInputError("moments must come from at least one row, got none: accumulate some first")


def _notes_on(moments: Moments, variant: Variant) -> tuple[str, ...]:
    """Say what the number of rows means for the solution; warns where it is too small for the variant."""
    notes = []
    if moments.count < moments.features and variant is not Variant.ANCHORED:
        note = f"{moments.count} rows for {moments.features} features: the {variant} fit is exact on the sample only"
        warnings.warn(f"{note}; variant 'anchored' keeps to the weight instead", FewSamplesWarning, stacklevel=3)
        notes.append(note)
    if moments.count == 1:
        notes.append("one row: its covariance is zero, so an affine fit has nothing to go by but the weight")
    return tuple(notes)
