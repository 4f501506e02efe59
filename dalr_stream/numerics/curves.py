"""Error curves of low-rank factors: the squared error at every rank on any moments, without data.

With U orthonormal and x, y about the centres c and o that the factors were solved with,

    err(k) = ||Y - U_k U_k'M X||^2,      err(k - 1) - err(k) = 2 u_k' M X Y' u_k - u_k' M X X' M' u_k

so one product with the moments gives every rank. err(K) is formed directly and the rest added from the tail: prefix
sums lose small errors to cancellation. What is known of X and Y decides how: X alone where Y = W X, Y alone where
besides M = W, or both from two runs. Held-out moments are taken about the training centres: their own would
understate the error.

Resolution: a few EPSILON x err(0), so a value may lie below zero by that much; nothing is clamped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.psd import factor_ridge, symmetric_values
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments

if TYPE_CHECKING:
    from dalr_stream.numerics.lowrank.factors import LowRankFactors

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def error_curve(factors: LowRankFactors, moments: Moments | CrossMoments, side: Side) -> Vector:
    """(K + 1,): the squared error at ranks 0..K, summed over the rows of `moments`."""
    require_moments_of(factors.weight, moments, side)
    if isinstance(moments, CrossMoments):
        return _on_cross(factors, moments)
    if factors.diagnostics.source == "cross":
        raise InvalidInputError("these factors were solved against another run's outputs: errors need cross moments")
    return _on_inputs(factors, moments) if side is Side.INPUTS else _on_outputs(factors, moments)


def least_error_curve(factors: LowRankFactors, moments: Moments | CrossMoments, side: Side) -> Vector:
    """(K + 1,): the least that any map of rank 0..K, about the same centres, leaves on these moments.

    Least squares, and the tail of the eigenvalues of what it fits (Izenman 1975). One decomposition, eigenvalues only.
    """
    require_moments_of(factors.weight, moments, side)
    left = 0.0
    if isinstance(moments, CrossMoments):
        total = moments.outputs.scatter_about(factors.offset)
        y = factor_ridge(moments.inputs.scatter_about(factors.center), 0.0).half(
            moments.cross_scatter_about(factors.center, factors.offset).T
        )
        fitted = y.T @ y
        left = max(float(np.trace(total) - np.trace(fitted)), 0.0)
    elif side is Side.INPUTS:
        fitted = factors.weight @ moments.scatter_about(factors.center) @ factors.weight.T
    else:
        fitted = moments.scatter_about(factors.offset)
    values = np.maximum(symmetric_values(fitted), 0.0)
    return tail_sums(values, left)[: factors.max_rank + 1]


def require_moments_of(weight: Matrix, moments: Moments | CrossMoments, side: Side) -> None:
    """Raise where `moments` are not those of the layer with this `weight` (m, d), or of no rows."""
    m, d = weight.shape
    if side is Side.CHANNELS:
        raise InvalidInputError("side must be 'inputs' or 'outputs': from channels selections are solved")
    if isinstance(moments, Mapping):
        names = " or ".join(f"moments['{name}']" for name in moments)
        raise InvalidInputError(f"moments must be of one layer, got a mapping: say {names}")
    if isinstance(moments, CrossMoments):
        found = f"{moments.input_features} inputs and {moments.output_features} outputs"
        fits = (moments.output_features, moments.input_features) == (m, d)
    else:
        found = f"{moments.features} {'features' if side is Side.INPUTS else side.value}"
        fits = moments.features == (d if side is Side.INPUTS else m)
    if not fits:
        raise InvalidInputError(f"moments of {found} do not fit a weight of shape {weight.shape}")
    if moments.count == 0:
        raise InvalidInputError("moments must come from at least one row, got none: accumulate some first")


def tail_sums(steps: Vector, last: float) -> Vector:
    """(K + 1,): last + steps[k] + ... + steps[K - 1] for k = 0..K, added from the end."""
    return np.cumsum(np.concatenate([[last], steps[::-1]]))[::-1].copy()


def _on_inputs(factors: LowRankFactors, moments: Moments) -> Vector:
    """Y = W X: err(k) = tr(D_k S D_k') with D_k = W - U_k U_k'M. Cost: 4 m d^2 operations."""
    scatter = moments.scatter_about(factors.center)
    residual = factors.weight - factors.basis @ factors.down
    last = float(np.vdot(residual @ scatter, residual))
    target = factors.basis.T @ factors.weight
    steps = np.einsum("ij,ij->i", factors.down @ scatter, 2.0 * target - factors.down)
    return tail_sums(steps, last)


def _on_outputs(factors: LowRankFactors, moments: Moments) -> Vector:
    """M = W: err(k) = tr((I - U_k U_k') Y Y'), whatever X was. Cost: 2 m^2 K operations."""
    if not factors.method.keeps_weight:
        raise InvalidInputError(
            f"{factors.method.value}: its errors need the moments of the layer's inputs; those of its outputs are "
            "enough for truncated SVD and the anchored variant alone"
        )
    scatter = moments.scatter_about(factors.offset)
    steps = np.einsum("ij,ij->j", factors.basis, scatter @ factors.basis)
    square = factors.max_rank == factors.outputs  # U U' is then the identity
    return tail_sums(steps, 0.0 if square else float(np.trace(scatter) - steps.sum()))


def _on_cross(factors: LowRankFactors, moments: CrossMoments) -> Vector:
    """Y of another run. Cost: 2 K d (m + d) operations."""
    between = factors.basis.T @ moments.cross_scatter_about(factors.center, factors.offset)
    fitted = factors.down @ moments.inputs.scatter_about(factors.center)
    steps = np.einsum("ij,ij->i", 2.0 * between - fitted, factors.down)
    total = moments.outputs.scatter_about(factors.offset)
    return tail_sums(steps, float(np.trace(total) - steps.sum()))
