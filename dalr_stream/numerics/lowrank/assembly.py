"""What every way of solving a layer shares: the layer and the options validated, a fit made into factors.

Moments, cross moments, outputs alone and stored rows all end in a `regression.Fit` about some centres. Here that
becomes `LowRankFactors`, with signs fixed and with a record of how it came about.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dalr_stream.errors import FewSamplesWarning, InvalidInputError, RankError
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.linalg.psd import EPSILON, column_signs, require_finite, thin_qr
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.regression import Fit
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.types import Matrix, Vector

INDEFINITE = -10.0
"""x order x EPSILON: a margin below that is not rounding of a sum of squares."""


@dataclass(frozen=True, slots=True, eq=False)
class AffineMap:
    """W x + b, what a layer computes: validated copies of its weight and bias."""

    weight: Matrix
    """(m, d), float64; after `as_given` of the type it came in."""
    bias: Vector
    """(m,)"""

    @classmethod
    def of(cls, weight: ArrayLike, bias: ArrayLike | None) -> AffineMap:
        """Copy and validate; no bias is a bias of zeros."""
        return cls.as_given(weight, bias).widened()

    @classmethod
    def as_given(cls, weight: ArrayLike, bias: ArrayLike | None) -> AffineMap:
        """Do the same, with a float32 weight left as it is: enough where blocks of it are widened one by one."""
        if getattr(weight, "requires_grad", False) or getattr(bias, "requires_grad", False):
            raise InvalidInputError(
                "weight and bias must be arrays, got a torch parameter that requires grad: weights_of(model, name) "
                "gives both"
            )
        given = np.asarray(weight)
        w: Any = np.array(given, dtype=np.float32 if given.dtype == np.float32 else np.float64, order="C")
        if w.ndim != 2 or 0 in w.shape:
            raise InvalidInputError(f"weight must be a matrix of outputs x inputs, got shape {w.shape}")
        b = np.zeros(w.shape[0]) if bias is None else np.array(bias, dtype=np.float64)
        if b.shape != (w.shape[0],):
            raise InvalidInputError(f"bias must have one entry an output of the weight {w.shape}, got shape {b.shape}")
        require_finite(w, "weight")
        require_finite(b, "bias")
        return cls(w, b)

    def widened(self) -> AffineMap:
        """Return the layer in float64."""
        return self if self.weight.dtype == np.float64 else AffineMap(np.array(self.weight, np.float64), self.bias)

    def reach(self) -> tuple[Matrix | None, Matrix]:
        """Return Q (m, d) and T (d, d) with W = Q T where m > d; else None and W."""
        m, d = self.weight.shape
        return thin_qr(self.widened().weight) if m > d else (None, self.weight)

    def ranks(self, max_rank: int | None) -> int:
        """Return K: min(m, d), or `max_rank` where that is less. Raises RankError below 1."""
        whole = isinstance(max_rank, int | np.integer) and not isinstance(max_rank, bool)
        if max_rank is not None and (not whole or max_rank < 1):
            raise RankError(f"max_rank must be a whole number >= 1, got {max_rank}")
        largest: int = min(self.weight.shape)
        return largest if max_rank is None else min(int(max_rank), largest)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the rows behind a solution were, and the centres that it is about."""

    source: str
    count: int
    samples: int
    center: Vector
    """(d,)"""
    offset: Vector
    """(m,)"""
    notes: tuple[str, ...] = ()


def assemble(
    layer: AffineMap, form: DalrOptions, seen: Seen, lam: float, fit: Fit, turn: Matrix | None
) -> LowRankFactors:
    """Return the factors of a fit; `turn` is the Q of `AffineMap.reach`."""
    basis = fit.basis if turn is None else turn @ fit.basis
    signs = column_signs(basis)
    d = layer.weight.shape[1]
    return LowRankFactors(
        method=form.method,
        weight=layer.weight,
        basis=np.multiply(basis, signs, order="C"),  # as they are read back: products have the same bits then
        down=np.multiply(fit.down, signs[:, None], order="C"),
        center=seen.center,
        offset=seen.offset,
        objective=fit.objective,
        diagnostics=Diagnostics(
            count=seen.count,
            samples=seen.samples,
            features=d,
            numerical_rank=fit.rank,
            ridge=lam,
            route=fit.route.value,
            notes=(
                *_notes(seen, d, form.variant),
                *seen.notes,
                *fit.notes,
                *_indefinite(fit.margin, max(basis.shape[0], d)),
            ),
            source=seen.source,
            reason=fit.reason,
            condition=fit.condition,
            psd_margin=fit.margin,
            error=float(fit.error),
            error_bound=fit.error_bound,
        ),
    )


def warn_of_few_rows(count: int, features: int, variant: Variant) -> None:
    """Warn where a sample of n < d rows is fitted perfectly; called from the public functions."""
    if count < features and variant is not Variant.ANCHORED:
        note = f"{_few(count, features, variant)}; variant 'anchored' keeps to the weight instead"
        warnings.warn(note, FewSamplesWarning, stacklevel=3)


def _notes(seen: Seen, features: int, variant: Variant) -> tuple[str, ...]:
    """Say what the number of rows means for the solution."""
    notes = []
    if seen.count < features and variant is not Variant.ANCHORED:
        notes.append(_few(seen.count, features, variant))
    if seen.count == 1:
        notes.append("one row: its covariance is zero, so an affine fit has nothing to go by but the weight")
    return tuple(notes)


def _few(count: int, features: int, variant: Variant) -> str:
    return f"{count} rows for {features} features: the {variant} fit is exact on the sample only"


def _indefinite(margin: float | None, order: int) -> tuple[str, ...]:
    """Say so where the moments are no sum of squares."""
    if margin is None or margin >= INDEFINITE * order * EPSILON:
        return ()
    note = f"the moments are not positive semi-definite: smallest eigenvalue {margin:.1e} of the trace; a subtraction "
    return (note + "lost digits, add up the records of the rows that stay instead",)
