"""What a low-rank solver is given: a layer's weight and bias, and moments of the rows that the solution is fitted to.

Weight, bias and moments come one by one, or together as a `Layer`, which may have several groups. Both become one
`Problem` for each group, validated, and the solvers know no other form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dalr_stream.errors import InvalidInputError, RankError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.linalg.psd import require_finite, thin_qr
from dalr_stream.numerics.linalg.ridge_factor import factor_ridge
from dalr_stream.numerics.lowrank.output_metric import DEFAULT_GRADIENT_RIDGE, OutputMetric
from dalr_stream.numerics.lowrank.regression import InputSums, Sums
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.widths import require_gradients_of, require_moments_of
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector, real_array

AnyMoments = Moments | CrossMoments


@dataclass(frozen=True, slots=True, eq=False)
class AffineMap:
    """W x + b, what a layer computes: validated copies of its weight and bias."""

    weight: Matrix
    """(m, d), float64; after `as_given` of the type it came in."""
    bias: Vector
    """(m,)"""
    prefix: str = ""
    """Of messages: which layer it is, where that is known."""

    @classmethod
    def of(cls, weight: ArrayLike, bias: ArrayLike | None, prefix: str = "") -> AffineMap:
        """Copy and validate; no bias is a bias of zeros."""
        return cls.as_given(weight, bias, prefix).widened()

    @classmethod
    def as_given(cls, weight: ArrayLike, bias: ArrayLike | None, prefix: str = "") -> AffineMap:
        """Do the same, but leave a float32 weight as it is, where it is, for solvers that widen it block by block."""
        if getattr(weight, "requires_grad", False) or getattr(bias, "requires_grad", False):
            raise InvalidInputError(
                f"{prefix}weight and bias must be arrays, got a torch parameter that requires grad: "
                "weights_of(model, name) gives both"
            )
        given = real_array(weight, f"{prefix}weight")
        narrow = given.dtype == np.float32
        w: Any = np.asarray(given, order="C") if narrow else np.array(given, dtype=np.float64, order="C")
        if w.ndim != 2 or 0 in w.shape:
            raise InvalidInputError(f"{prefix}weight must be a matrix of outputs x inputs, got shape {w.shape}")
        b = np.zeros(w.shape[0]) if bias is None else np.array(real_array(bias, f"{prefix}bias"), dtype=np.float64)
        if b.shape != (w.shape[0],):
            raise InvalidInputError(f"{prefix}bias must have {w.shape[0]} entries, one per output, got shape {b.shape}")
        require_finite(w, f"{prefix}weight")
        require_finite(b, f"{prefix}bias")
        return cls(w, b, prefix)

    def widened(self) -> AffineMap:
        """Return the layer in float64."""
        if self.weight.dtype == np.float64:
            return self
        return AffineMap(np.array(self.weight, np.float64), self.bias, self.prefix)

    def reach(self) -> tuple[Matrix | None, Matrix]:
        """Return Q (m, d) and T (d, d) with W = Q T where m > d; else None and W."""
        m, d = self.weight.shape
        return thin_qr(self.widened().weight) if m > d else (None, self.weight)

    def ranks(self, max_rank: int | None) -> int:
        """Return K: min(m, d), or `max_rank` where that is less. Raises RankError below 1."""
        whole = isinstance(max_rank, int | np.integer) and not isinstance(max_rank, bool)
        if max_rank is not None and (not whole or max_rank < 1):
            raise RankError(f"{self.prefix}max_rank must be a whole number >= 1, got {max_rank}")
        largest: int = min(self.weight.shape)
        return largest if max_rank is None else min(int(max_rank), largest)


@dataclass(frozen=True, slots=True, eq=False)
class FittedRows:
    """The rows that a solution was fitted to, and the centres that it is about."""

    source: str
    count: int
    samples: int
    center: Vector
    """(d,)"""
    offset: Vector
    """(m,)"""
    notes: tuple[str, ...] = ()

    def noting(self, ridge: Ridge) -> FittedRows:
        """Return the same, saying how a ridge came about that is no number of the caller's."""
        if not ridge.is_shrinkage:
            return self
        return replace(self, notes=(*self.notes, f"ridge by shrinkage, from {self.samples} samples"))


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One weight, and the moments that decide what takes its place."""

    original: AffineMap
    moments: AnyMoments | None
    """Of the layer's inputs or outputs, or of both from two runs. None where the weight alone decides."""
    side: Side
    """Which of the two `moments` are of; means nothing with cross moments."""
    rows: Iterable[NDArray[Any]] | None = None
    """The rows that moments of the inputs are of, where they are at hand."""
    gradients: Moments | None = None
    """Of the gradients of the loss by the outputs, for `weighted`."""
    gradient_ridge: Ridge = DEFAULT_GRADIENT_RIDGE

    def widened(self) -> Problem:
        """Return the same with the weight in float64."""
        return replace(self, original=self.original.widened())

    def few_rows(self, options: DalrOptions) -> Iterable[NDArray[Any]] | None:
        """Return the rows where they are at hand, fewer than features, and the variant has an inverse to save."""
        if options.variant.shrinks_to_weight or self.side is not Side.INPUTS:
            return None
        return self.rows if self.checked_moments().count < self.original.weight.shape[1] else None

    def checked_moments(self) -> AnyMoments:
        """Return `moments`; raises InvalidInputError where they are None or do not fit the weight."""
        if self.moments is None:
            raise InvalidInputError(
                f"{self.original.prefix}the moments of the layer's {self.side.value} are needed, got none: give them "
                "beside weight and bias, or a Layer that has them"
            )
        require_moments_of(self.original.weight, self.moments, self.side, self.original.prefix)
        return self.moments

    def require_decidable(self, options: DalrOptions) -> None:
        """Raise InvalidInputError where the moments do not fit the layer or do not decide this variant."""
        if self._outputs_alone and options.variant is not Variant.ANCHORED:
            raise InvalidInputError(
                f"{self.original.prefix}moments of the outputs alone decide the anchored variant, not "
                f"{options.variant.value!r}: that needs those of the inputs, or the rows (dalr_from_rows)"
            )
        self.checked_moments()
        if options.variant is Variant.WEIGHTED:
            require_gradients_of(self.original.weight, self._known_gradients, self.original.prefix)

    def require_known_inputs(self, ridges: Iterable[Ridge]) -> None:
        """Raise InvalidInputError where a ridge asks for S and the outputs alone are known."""
        if self._outputs_alone and any(ridge.is_shrinkage for ridge in ridges):
            raise InvalidInputError(
                f"{self.original.prefix}ridge 'shrinkage' needs the moments of the inputs, got those of the outputs "
                "alone: give a number"
            )

    def metric(self, options: DalrOptions) -> OutputMetric | None:
        """Return the metric of the outputs; None where it is I. Cost: an eigendecomposition of order m."""
        if options.variant is not Variant.WEIGHTED:
            return None
        return OutputMetric.of(self._known_gradients, self.gradient_ridge)

    @property
    def _outputs_alone(self) -> bool:
        return self.side is Side.OUTPUTS and not isinstance(self.moments, CrossMoments)

    @property
    def _known_gradients(self) -> Moments:
        if self.gradients is None:
            raise InvalidInputError(
                f"{self.original.prefix}variant 'weighted' needs the moments of the gradients by its outputs, got "
                "none: accumulate them too, watch(..., gradients=[...]) or network.gradients in a run file, or "
                "give gradients="
            )
        return self.gradients

    def sums(self, options: DalrOptions, turn: Matrix | None, reached: Matrix) -> Sums:
        """Second moments about the means where affine, else of X about zero and of Y about the bias: Z about zero.

        `turn` and `reached` are those of `AffineMap.reach`; they do not matter with cross moments.
        """
        moments = self.checked_moments()
        weight, bias = self.original.weight, self.original.bias
        if isinstance(moments, CrossMoments):
            x, y = moments.inputs, moments.outputs
            if options.affine:
                return Sums(weight, y.scatter, InputSums.of(x, x.mean), moments.cross_scatter)
            zero = np.zeros(x.features)
            return Sums(weight, y.scatter_about(bias), InputSums.of(x, zero), moments.cross_scatter_about(zero, bias))
        if self.side is Side.INPUTS:
            centre = moments.mean if options.affine else np.zeros(moments.features)
            return Sums.of_inputs(reached, InputSums.of(moments, centre))
        outputs = moments.scatter if options.affine else moments.scatter_about(bias)
        return Sums(reached, outputs if turn is None else turn.T @ outputs @ turn)

    def fitted_rows(self, *, adjusts_bias: bool, own: Matrix | None = None) -> FittedRows:
        """Return where the rows came from, and their centres where the bias depends on them.

        `own` is W W' (m, m), where it is already there.
        """
        moments, weight, bias = self.moments, self.original.weight, self.original.bias
        center, offset = np.zeros(weight.shape[1]), bias
        if moments is None:
            return FittedRows("none", 0, 0, center, offset)
        source = "cross" if isinstance(moments, CrossMoments) else self.side.value
        if adjusts_bias and isinstance(moments, CrossMoments):
            center, offset = moments.inputs.mean.copy(), moments.outputs.mean.copy()
        elif adjusts_bias and isinstance(moments, Moments) and self.side is Side.INPUTS:
            center = moments.mean.copy()
            offset = bias + weight @ center
        elif adjusts_bias and isinstance(moments, Moments):
            center, offset = _inputs_behind(weight, moments.mean - bias, own), moments.mean.copy()
        return FittedRows(source, moments.count, moments.samples, center, offset)


def problems_of(
    weight: ArrayLike | Layer,
    bias: ArrayLike | None,
    moments: AnyMoments | None,
    side: Side | str | None,
    gradients: Moments | None = None,
    gradient_ridge: Ridge = DEFAULT_GRADIENT_RIDGE,
) -> list[Problem]:
    """Return one problem for each group of a `Layer`; one where weight, bias and moments were given.

    Without a `side` the inputs decide, and the outputs of a layer of which nothing else is known.
    """
    parsed = None if side is None else parse_choice(Side, side, "side")
    if not isinstance(weight, Layer):
        given = AffineMap.as_given(weight, bias)
        return [Problem(given, moments, parsed or Side.INPUTS, None, gradients, gradient_ridge)]
    if bias is not None or moments is not None or gradients is not None:
        raise InvalidInputError(f"layer '{weight.name}': has a bias and moments of its own, so none go beside it")
    return [replace(_problem_of(part, parsed), gradient_ridge=gradient_ridge) for part in weight.parts]


def _problem_of(part: Layer, side: Side | None) -> Problem:
    prefix = f"layer '{part.name}': "
    if side is None:
        side = Side.OUTPUTS if part.inputs is None and part.outputs is not None else Side.INPUTS
    known = part.outputs if side is Side.OUTPUTS else part.inputs
    moments = None if known is None else known.parts[0]
    rows = part.rows[0] if part.rows and side is Side.INPUTS else None
    gradients = None if part.gradients is None else part.gradients.parts[0]
    return Problem(AffineMap.as_given(part.weight, part.bias, prefix), moments, side, rows, gradients)


def _inputs_behind(weight: Matrix, z: Vector, own: Matrix | None) -> Vector:
    """Return the shortest c (d,) with W c = z (m,): any such centre gives the same bias where W_k = U_k U_k'W.

    By the normal equations W W' and one step of refinement. Cost: m^2 d + m^3 / 3 operations.
    """
    factor = factor_ridge(weight @ weight.T if own is None else own, 0.0)
    center = weight.T @ factor.pull_back(factor.half(z[:, None]))[:, 0]
    left = z - weight @ center
    return center + weight.T @ factor.pull_back(factor.half(left[:, None]))[:, 0]
