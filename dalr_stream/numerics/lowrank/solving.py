"""One weight and its moments solved, at one ridge or several: the routes, and what they have in common.

`weighted` is `anchored` with F W in place of W and F Y in place of Y, where F'F is the metric of the loss; what it
finds is brought back by F^-1. All else goes by the same lines: turning a tall weight, ridges, outliers, records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from dalr_stream.numerics.linalg.psd import symmetric_eigen
from dalr_stream.numerics.linalg.ridge_factor import EigenFactor, RidgeFactor, factor_ridge_of
from dalr_stream.numerics.lowrank.assembly import assemble, noting_outliers
from dalr_stream.numerics.lowrank.dual import dual_of
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.problem import Problem
from dalr_stream.numerics.lowrank.regression import Fit, Sums, anchored, anchored_across, regression
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.statistics.cross import CrossMoments


def require_decidable(problems: Sequence[Problem], options: DalrOptions) -> tuple[int, int]:
    """Raise where moments do not decide the variant; return their rows and the features of the weight."""
    for problem in problems:
        problem.require_decidable(options)
    return problems[0].checked_moments().count, problems[0].original.weight.shape[1]


def solved(
    problem: Problem, options: DalrOptions, max_rank: int | None, ridges: tuple[Ridge, ...]
) -> tuple[LowRankFactors, ...]:
    """Solve for each ridge."""
    rows = problem.few_rows(options)
    if rows is not None:
        most, samples = problem.original.ranks(max_rank), problem.checked_moments().samples
        return tuple(dual_of(problem.original, options, rows, ridge, most, samples=samples) for ridge in ridges)
    problem = problem.widened()
    problem.require_known_inputs(ridges)
    original, metric = problem.original, problem.metric(options)
    most = original.ranks(max_rank)
    across = isinstance(problem.moments, CrossMoments)
    seen = original if metric is None else dataclasses.replace(original, weight=metric.into(original.weight))
    turn, reached = (None, original.weight) if across else seen.reach()
    sums = problem.sums(options, turn, reached)
    if metric is not None and across:
        sums = sums.in_metric(metric)
    if options.variant.shrinks_to_weight and not across:
        sums = dataclasses.replace(sums, own=reached @ reached.T)
    fitted = problem.fitted_rows(adjusts_bias=options.adjusts_bias, own=sums.own if turn is None else None)
    if sums.inputs is not None:
        fitted = noting_outliers(original, fitted, sums.inputs.diagonal, ridges)
    factored = _factoring(sums, options, len(ridges))
    solutions = []
    for ridge in ridges:
        lam = sums.lam(ridge)
        fit = _fit(sums, lam, most, factored, options.variant)
        solutions.append(assemble(original, options, fitted.noting(ridge), lam, fit, turn, metric))
    return tuple(solutions)


def _fit(sums: Sums, lam: float, most: int, factored: Callable[[float], RidgeFactor], variant: Variant) -> Fit:
    if not variant.shrinks_to_weight:
        return regression(sums, lam, most, factored(lam), variant)
    return anchored(sums, lam, most) if sums.cross is None else anchored_across(sums, lam, most, factored(lam))


def _factoring(sums: Sums, options: DalrOptions, ridges: int) -> Callable[[float], RidgeFactor]:
    """Return a function that factors S + lam I: by itself for one ridge, from one eigendecomposition for several."""
    s = sums.inputs
    if s is None or (options.variant.shrinks_to_weight and sums.cross is None) or ridges == 1:
        return lambda lam: factor_ridge_of(sums.known_inputs.matrix, lam)
    eigen = symmetric_eigen(s.matrix().T, overwrite=True)
    return lambda lam: EigenFactor.of(eigen, lam)
