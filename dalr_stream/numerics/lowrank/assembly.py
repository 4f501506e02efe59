"""A fit made into factors: signs fixed, and a record of how it came about.

Moments, cross moments, outputs alone and stored rows all end in a `regression.Fit` about some centres; here that
becomes `LowRankFactors`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable

import numpy as np

from dalr_stream.errors import FewSamplesWarning, OutlierFeaturesWarning
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.linalg.psd import EPSILON, column_signs
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.output_metric import OutputMetric
from dalr_stream.numerics.lowrank.problem import AffineMap, FittedRows
from dalr_stream.numerics.lowrank.regression import Fit
from dalr_stream.numerics.lowrank.ridge import Ridge, outliers_in_words
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.types import Matrix, Vector

INDEFINITE = -10.0
"""x order x EPSILON: a margin below that is not rounding of a sum of squares."""


def assemble(
    original: AffineMap,
    options: DalrOptions,
    fitted: FittedRows,
    lam: float,
    fit: Fit,
    turn: Matrix | None,
    metric: OutputMetric | None = None,
) -> LowRankFactors:
    """Return the factors of a fit; `turn` is the Q of `AffineMap.reach`, `metric` the one that it was solved in."""
    basis = fit.basis if turn is None else turn @ fit.basis
    signs = column_signs(basis)
    if metric is not None:
        basis = metric.back(basis)
        lengths = np.linalg.norm(basis, axis=0)
        basis, signs = basis / lengths, column_signs(basis)
        fit = dataclasses.replace(fit, down=fit.down * lengths[:, None], notes=(*metric.notes, *fit.notes))
    d = original.weight.shape[1]
    return LowRankFactors(
        method=options.method,
        weight=original.weight,
        basis=np.multiply(basis, signs, order="C"),  # as they are read back: products have the same bits then
        down=np.multiply(fit.down, signs[:, None], out=fit.down),
        center=fitted.center,
        offset=fitted.offset,
        objective=fit.objective,
        diagnostics=Diagnostics(
            count=fitted.count,
            samples=fitted.samples,
            features=d,
            numerical_rank=fit.rank,
            ridge=lam,
            route=fit.route.value,
            notes=(
                *_notes(fitted, d, options.variant),
                *fitted.notes,
                *fit.notes,
                *_indefinite(fit.margin, max(basis.shape[0], d)),
            ),
            source=fitted.source,
            reason=fit.reason,
            condition=fit.condition,
            psd_margin=fit.margin,
            error=float(fit.error),
            error_bound=fit.error_bound,
            gradient_ridge=None if metric is None else metric.gamma,
        ),
    )


def warn_of_few_rows(count: int, features: int, variant: Variant) -> None:
    """Warn where a sample of n < d rows is fitted perfectly; called from the public functions."""
    if count < features and not variant.shrinks_to_weight:
        note = f"{_few(count, features, variant)}; variant 'anchored' keeps to the weight instead"
        warnings.warn(note, FewSamplesWarning, stacklevel=3)


def noting_outliers(original: AffineMap, fitted: FittedRows, diagonal: Vector, ridges: Iterable[Ridge]) -> FittedRows:
    """Warn of features whose scale a relative ridge does not follow, and note them."""
    note = outliers_in_words(diagonal) if any(ridge.is_relative and ridge.value for ridge in ridges) else ""
    if not note:
        return fitted
    warnings.warn(original.prefix + note, OutlierFeaturesWarning, stacklevel=4)
    return dataclasses.replace(fitted, notes=(*fitted.notes, note))


def _notes(fitted: FittedRows, features: int, variant: Variant) -> tuple[str, ...]:
    """Say what the number of rows means for the solution."""
    notes = []
    if fitted.count < features and not variant.shrinks_to_weight:
        notes.append(_few(fitted.count, features, variant))
    if fitted.count == 1:
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
