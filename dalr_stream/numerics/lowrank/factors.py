"""Low-rank factors: one decomposition that holds every rank, and its squared error at every rank on any moments.

Every low-rank method of the package is a basis U (m, K) and rows D (K, d), with W ~ U_k D_k: rank k is the first k of
both, so nothing is solved again when another rank is asked for. U is orthonormal and D = U'M with a regression M (m,
d), but for `weighted`, whose U is so in the metric of the loss. One product with the moments gives the error at every
rank, without data (`curves`). What is known of X and Y decides how: X alone where Y = W X, Y alone where besides M = W,
or both from two runs. Held-out moments are taken about the training centres: their own would understate the error.
Resolution: a few EPSILON x err(0), so a value may lie below zero by that much; nothing is clamped.

Records are validated when made, and their arrays are never changed. Nothing here solves anything.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np

from dalr_stream.errors import InvalidInputError, ParameterIncreaseWarning
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.lowrank.curves import (
    Pair,
    errors_on_cross,
    errors_on_inputs,
    errors_on_outputs,
    least_errors,
    least_errors_on_cross,
)
from dalr_stream.numerics.lowrank.widths import require_gradients_of, require_moments_of
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.options import integer_within, parse_choice
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class LowRankLayer:
    """Two small layers for one: y ~ up (down x) + bias."""

    down: Matrix
    """(k, d): the first layer, without bias."""
    up: Matrix
    """(m, k): the second layer."""
    bias: Vector
    """(m,)"""

    def __repr__(self) -> str:
        return f"LowRankLayer of rank {self.rank}, {self.up.shape[0]} x {self.down.shape[1]}"

    @property
    def parts(self) -> tuple[LowRankLayer]:
        """A one-element tuple, so plain and grouped pairs iterate alike."""
        return (self,)

    @property
    def rank(self) -> int:
        """Rank k."""
        return int(self.down.shape[0])

    @property
    def parameters(self) -> int:
        """Weights, k (m + d); the bias, which the layer had before, is not counted."""
        return self.down.size + self.up.size

    def balanced(self) -> LowRankLayer:
        """Return the same product with its scale shared, for storage in half precision.

        Column i of `up` and row i of `down` get the same norm, and then both matrices the same largest row norm, so
        that neither comes near the ends of the range before the other. The product changes by rounding alone.
        """
        share = np.sqrt(np.linalg.norm(self.down, axis=1))
        share[share == 0.0] = 1.0
        up, down = self.up * share, self.down / share[:, None]
        largest = [float(np.linalg.norm(part, axis=1).max()) for part in (up, down)]
        scale = np.sqrt(largest[1] / largest[0]) if min(largest) > 0.0 else 1.0
        return LowRankLayer(down / scale, up * scale, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class LowRankFactors:
    """Every rank of one decomposition: W (x - center) ~ U_k D_k (x - center), with U = basis and D = down.

    Attributes
    ----------
    method
        The method that solved it.
    weight
        (m, d): the original weight W.
    basis
        (m, K): U, K <= min(m, d) columns of length 1, orthonormal but for `weighted`; fewer where only small ranks
        were asked for.
    down
        (K, d): D.
    center
        (d,): zeros, or the training mean of the inputs where the bias is adjusted.
    offset
        (m,): b + W center.
    objective
        (K + 1,): the method's own objective on its training moments, at ranks 0..K.
    diagnostics
        Rows, numerical rank, ridge and route of the solution, and what was noted on the way.
    """

    method: Method
    weight: Matrix
    basis: Matrix
    down: Matrix
    center: Vector
    offset: Vector
    objective: Vector
    diagnostics: Diagnostics

    def __post_init__(self) -> None:
        m, d = self.weight.shape
        k = self.basis.shape[-1]
        if not 0 < k <= min(m, d):
            raise InvalidInputError(f"low-rank factors: a {m} x {d} weight has ranks 1..{min(m, d)}, got {k} of them")
        expected = {"basis": (m, k), "down": (k, d), "center": (d,), "offset": (m,), "objective": (k + 1,)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InvalidInputError(
                    f"low-rank factors: {name} must be {shape} for a {m} x {d} weight, got {getattr(self, name).shape}"
                )
        for name in ("weight", *expected):
            getattr(self, name).setflags(write=False)

    def __repr__(self) -> str:
        return f"LowRankFactors by {self.method.value}, {self.outputs} x {self.inputs}, ranks 1 to {self.max_rank}"

    @property
    def parts(self) -> tuple[LowRankFactors]:
        """A one-element tuple, so plain and grouped factors iterate alike."""
        return (self,)

    @property
    def outputs(self) -> int:
        """Outputs m."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """Inputs d."""
        return int(self.weight.shape[1])

    @property
    def max_rank(self) -> int:
        """K: min(m, d), or what the solver was asked for."""
        return int(self.basis.shape[1])

    @property
    def break_even_rank(self) -> int:
        """Largest rank that adds no parameters: floor(m d / (m + d))."""
        return self.outputs * self.inputs // (self.outputs + self.inputs)

    def at_rank(self, k: int, *, layer: str | None = None, balanced: bool = False) -> LowRankLayer:
        """Return the factors of rank `k`, views of this record, and the bias that goes with them.

        Warns ParameterIncreaseWarning where k (m + d) > m d.

        Parameters
        ----------
        k
            The rank, 1..K.
        layer
            Names the layer in messages.
        balanced
            Share the scale between the two factors, as `LowRankLayer.balanced` does: new arrays.

        Returns
        -------
        LowRankLayer
            `.down` (k, d), `.up` (m, k) and `.bias` (m,), for `compress`.

        Raises
        ------
        RankError
            Outside 1..K.
        """
        prefix = "" if layer is None else f"layer {layer!r}: "
        k = integer_within(k, self.max_rank, f"{prefix}rank")
        m, d = self.outputs, self.inputs
        if k > self.break_even_rank:
            message = (
                f"{prefix}rank {k} needs {k * (m + d)} parameters where the layer has {m * d}: "
                f"up to rank {self.break_even_rank} none are added"
            )
            warnings.warn(message, ParameterIncreaseWarning, stacklevel=2)
        up, down = self.basis[:, :k], self.down[:k]
        bias = self.offset - up @ (down @ self.center)
        pair = LowRankLayer(down.copy(), up.copy(), bias)  # copies: a pair must not hold every rank in memory
        return pair.balanced() if balanced else pair

    def errors(self, moments: Moments | CrossMoments, *, side: Side | str = Side.INPUTS) -> Vector:
        """Return the squared error ||y - y_k||^2 summed over the rows of `moments`, at k = 0..K: (K + 1,).

        Cost: 4 m d^2 operations, no data; 2 m^2 K from the outputs.

        Parameters
        ----------
        moments
            Training or held-out moments of the layer's inputs; of its outputs alone (truncated SVD and anchored only);
            or cross moments, where y is another run's.
        side
            "inputs" or "outputs": what `moments` are of.

        Raises
        ------
        InvalidInputError
            Where `moments` are of another width, of no rows, or do not decide the errors.
        """
        parsed = parse_choice(Side, side, "side")
        require_moments_of(self.weight, moments, parsed)
        return _error_curve(self, moments, parsed, None)

    def losses(self, moments: Moments | CrossMoments, gradients: Moments) -> Vector:
        """Return what the network's loss rises by, in nats for a sample, at k = 0..K: (K + 1,).

        To second order: 1/2 tr(G (W - W_k) S (W - W_k)') / samples, with G = E[g g'] and S the scatter of `moments`.

        Parameters
        ----------
        moments
            Training or held-out moments of the layer's inputs, or cross moments, as for `errors`.
        gradients
            Of the gradients of the loss by the layer's outputs: `Layer.gradients`.

        Raises
        ------
        InvalidInputError
            As for `errors`, and where `gradients` are of another width or of no rows.
        """
        require_moments_of(self.weight, moments, Side.INPUTS)
        require_gradients_of(self.weight, gradients)
        return _error_curve(self, moments, Side.INPUTS, gradients.second_moment) / (2.0 * moments.samples)

    def error_bound(self, moments: Moments | CrossMoments, *, side: Side | str = Side.INPUTS) -> Vector:
        """Return the least squared error of any map of rank 0..K about the same centres on these moments: (K + 1,).

        Where `errors(moments)` equals it, nothing is left to gain. Cost: eigenvalues of order m, 4/3 m^3 operations.
        """
        return _least_error_curve(self, moments, parse_choice(Side, side, "side"))


def _error_curve(factors: LowRankFactors, moments: Moments | CrossMoments, side: Side, metric: Matrix | None) -> Vector:
    """(K + 1,): the squared error at ranks 0..K, summed over the rows of `moments`, in a metric of the outputs."""
    pair = Pair(factors.basis, factors.down, factors.method.orthonormal, metric)
    if isinstance(moments, CrossMoments):
        between = moments.cross_scatter_about(factors.center, factors.offset)
        fitted = moments.inputs.products.times(factors.down, factors.center)
        return errors_on_cross(pair, between, fitted, moments.outputs.scatter_about(factors.offset))
    if factors.diagnostics.source == "cross":
        raise InvalidInputError("these factors were solved against another run's outputs: errors need cross moments")
    if side is Side.OUTPUTS:
        return _on_outputs(factors, moments)
    return errors_on_inputs(pair, factors.weight, moments.products, factors.center)


def _on_outputs(factors: LowRankFactors, moments: Moments) -> Vector:
    """M = W: err(k) = tr((I - U_k U_k') Y Y'), whatever X was. Cost: 2 m^2 K operations."""
    if not factors.method.keeps_weight:
        raise InvalidInputError(
            f"{factors.method.value}: its errors need the moments of the layer's inputs; those of its outputs are "
            "enough for truncated SVD and the anchored variant alone"
        )
    return errors_on_outputs(factors.basis, moments.scatter_about(factors.offset))


def _least_error_curve(factors: LowRankFactors, moments: Moments | CrossMoments, side: Side) -> Vector:
    """(K + 1,): the least that any map of rank 0..K, about the same centres, leaves on these moments."""
    require_moments_of(factors.weight, moments, side)
    most = factors.max_rank
    if isinstance(moments, CrossMoments):
        between = moments.cross_scatter_about(factors.center, factors.offset)
        own = partial(moments.inputs.scatter_about, factors.center)
        return least_errors_on_cross(own, between, moments.outputs.scatter_about(factors.offset), most)
    if side is Side.INPUTS:
        return least_errors(moments.products.congruence(factors.weight, factors.center), 0.0, most)
    return least_errors(moments.scatter_about(factors.offset), 0.0, most)
