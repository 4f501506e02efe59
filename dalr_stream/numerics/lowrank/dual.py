"""The dual of the ridge regression: where rows are fewer than features, nothing of order d x d is formed.

    M = Z X' (X X' + lam I)^-1 = Z (X'X + lam I)^-1 X'

With n rows the matrix on the right is n x n, whatever d. The rows are read twice: the first pass makes their n x n Gram
and their outputs, the second multiplies the solution back onto them. For the first they are held in memory, in the type
they came in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Route
from dalr_stream.numerics.linalg.psd import require_finite, symmetric_eigen, tail_sums
from dalr_stream.numerics.linalg.rank_k import add_rank_k, mirror_lower
from dalr_stream.numerics.linalg.ridge_factor import factor_ridge
from dalr_stream.numerics.lowrank.assembly import assemble, noting_outliers
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.problem import AffineMap, FittedRows
from dalr_stream.numerics.lowrank.regression import Fit, facts
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.statistics.products import BLOCK_FEATURES
from dalr_stream.numerics.types import Matrix, Vector

Rows = NDArray[Any]

WHOLE_UP_TO = 8192
"""Rows up to which one call of BLAS adds to the Gram, at 177 GFLOP/s where the blocks of `rank_k` reach 153: they are
for many lanes, and for orders at which OpenBLAS 0.3.30 crashes in the one call (seen at 25,088)."""


def dual_of(
    original: AffineMap, options: DalrOptions, rows: Iterable[ArrayLike], ridge: Ridge, most: int, *, samples: int
) -> LowRankFactors:
    """Solve from rows that are known to be fewer than features, and to come from so many samples."""
    d = original.weight.shape[1]
    held = held_rows(rows, d)
    if held is None:
        raise InvalidInputError(f"{original.prefix}rows: fewer than the {d} features were expected, there are more")
    return solve_dual(original, options, held, rows, ridge, most, samples=samples)


def solve_dual(  # the layer, its rows twice, and how to solve
    original: AffineMap,
    options: DalrOptions,
    held: list[Rows],
    rows: Iterable[ArrayLike],
    ridge: Ridge,
    most: int,
    *,
    samples: int | None = None,
) -> LowRankFactors:
    """Solve through the n x n Gram; `held` is emptied once that is made, and the layer is widened last."""
    turn, reached = original.reach()
    gram, outputs, mean, diagonal = _first_pass(held, reached, affine=options.affine)
    held.clear()
    lam = ridge.of_matrix(diagonal, partial(_squares, gram), samples or len(gram))
    n, zero = len(gram), np.zeros(mean.size)
    solved = _solve(gram, outputs, lam, most, options.variant, full=most == min(reached.shape))
    del gram, outputs
    down = _second_pass(rows, solved.dual, mean if options.affine else zero)
    fit = dataclasses.replace(solved.fit, down=down, error=solved.fit.error - lam * float(np.vdot(down, down)))
    original, centre = original.widened(), mean if options.adjusts_bias else zero
    fitted = FittedRows("inputs", n, samples or n, centre, original.bias + original.weight @ centre)
    fitted = noting_outliers(original, fitted, diagonal, [ridge])
    return assemble(original, options, fitted.noting(ridge), lam, fit, turn)


def held_rows(rows: Iterable[ArrayLike], features: int) -> list[Rows] | None:
    """Return the blocks of fewer rows than features; None as soon as there are as many."""
    held: list[Rows] = []
    count = 0
    for block in rows:
        held.append(checked_block(block, features))
        count += len(held[-1])
        if count >= features:
            return None
    if count == 0:
        raise InvalidInputError("rows: at least one is needed, got none")
    return held


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """A fit whose `down` is still in terms of the rows: down = dual' X'."""

    fit: Fit
    dual: Matrix
    """(n, K)"""


def _first_pass(held: Sequence[Rows], weight: Matrix, *, affine: bool) -> tuple[Matrix, Matrix, Vector, Vector]:
    """Return the Gram (n, n) and the outputs (n, p) of the rows, about their mean if affine, and that mean (d,).

    And the squares of each feature (d,), about the same.
    """
    n, (p, d) = sum(map(len, held)), weight.shape
    gram, outputs, mean, diagonal = np.zeros((n, n)), np.zeros((n, p)), np.zeros(d), np.zeros(d)
    for start in range(0, d, BLOCK_FEATURES):
        some = slice(start, min(start + BLOCK_FEATURES, d))
        block = np.empty((some.stop - start, n))
        at = 0
        for rows in held:
            block[:, at : at + len(rows)] = rows[:, some].T
            at += len(rows)
        mean[some] = block.mean(axis=1)
        if affine:
            block -= mean[some, None]
        diagonal[some] = np.einsum("ij,ij->i", block, block)
        _add_gram(gram, block)
        _add_product(outputs, block.T, np.asarray(weight[:, some], np.float64).T)
    mirror_lower(gram)
    return gram, outputs, mean, diagonal


def _squares(gram: Matrix) -> float:
    """||X'X||^2, which is ||X X'||^2."""
    return float(np.vdot(gram, gram))


def _solve(gram: Matrix, outputs: Matrix, lam: float, most: int, variant: Variant, *, full: bool) -> _Solved:
    """Solve for U and for the dual of `down`, (G + lam I)^-1 Z U; the fit's error lacks its -lam ||down||^2.

    The fitted moments M X Z' of `optimal` are Z'Z - lam Z'(G + lam I)^-1 Z, right to EPSILON x tr(Z'Z), as their
    eigenvalues would be: little is left where lam is far above all of G, but nothing is fitted there to speak of.
    """
    factor = factor_ridge(gram, lam)
    target = outputs.T @ outputs
    if variant is Variant.OPTIMAL and lam:
        half = np.ascontiguousarray(factor.half(outputs))
        blas.dsyrk(-lam, half.T, 1.0, target.T, lower=0, overwrite_c=1)  # the lower triangle: no more is read
        del half
    whole, eigen = float(np.trace(target)), symmetric_eigen(target, most)
    dual = factor.pull_back(factor.half(outputs @ eigen.vectors), overwrite=True)
    seen = gram @ dual
    explained = np.einsum("ij,ij->j", seen, seen) + lam * np.einsum("ij,ij->j", dual, seen)
    if full:
        last = lam * float(np.vdot(outputs @ eigen.vectors, dual)) if lam else 0.0
    else:
        last = float(np.vdot(outputs, outputs)) - float(explained.sum())
    captured = float(np.maximum(eigen.values, 0.0).sum())
    _, reason, rank, condition, margin = facts(factor)
    fit = Fit(
        basis=eigen.vectors,
        down=np.zeros((0, 0)),
        objective=tail_sums(explained, last),
        error=last,
        error_bound=0.0 if full else max(0.0, whole - captured),
        route=Route.DUAL,
        reason=f"{len(gram)} rows are fewer than the features: the Gram of the rows; {reason}",
        rank=rank,
        condition=condition,
        margin=margin,
    )
    return _Solved(fit, dual)


def _second_pass(rows: Iterable[ArrayLike], dual: Matrix, mean: Vector) -> Matrix:
    """(K, d): dual' X', the rows about `mean`."""
    down, at = np.zeros((dual.shape[1], mean.size)), 0
    for block in rows:
        x = checked_block(block, mean.size) - mean
        if at + len(x) > len(dual):
            break
        _add_product(down, dual[at : at + len(x)].T, x)
        at += len(x)
    else:
        if at == len(dual):
            return down
    raise InvalidInputError(f"rows: {len(dual)} the first time, and not as many the second: they must be the same")


def checked_block(block: ArrayLike, features: int) -> NDArray[Any]:
    """Return one block of rows (t, d), validated."""
    x = np.asarray(block)
    if x.ndim != 2 or x.shape[1] != features:
        raise InvalidInputError(f"rows: blocks must be of {features} features, got shape {x.shape}")
    require_finite(x, "rows")
    return x


def _add_gram(gram: Matrix, block: Matrix) -> None:
    """Add block' block to the lower triangle of `gram` (n, n), C order, in place."""
    if len(gram) > WHOLE_UP_TO:
        add_rank_k(gram, block)
    else:
        blas.dsyrk(1.0, block.T, 1.0, gram.T, lower=0, overwrite_c=1)


def _add_product(total: Matrix, left: Matrix, right: Matrix) -> None:
    """Add left @ right to `total` (r, c), C order, in place: numpy would make the product separately."""
    (a, turn_a), (b, turn_b) = _transposed(right), _transposed(left)
    blas.dgemm(1.0, a, b, 1.0, total.T, trans_a=turn_a, trans_b=turn_b, overwrite_c=1)


def _transposed(matrix: Matrix) -> tuple[Matrix, bool]:
    """Return `matrix`' as BLAS takes it, in columns, and whether it is still to be turned; copied where it must be."""
    if matrix.flags.f_contiguous:
        return matrix, True
    return np.ascontiguousarray(matrix).T, False
