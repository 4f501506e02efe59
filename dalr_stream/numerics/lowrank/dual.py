"""The dual of the ridge regression: where rows are fewer than features, nothing of order d x d is formed.

    M = Z X' (X X' + lam I)^-1 = Z (X'X + lam I)^-1 X'

With n rows the matrix on the right is n x n, whatever d. The rows are read twice: the first pass makes their n x n Gram
and their outputs, the second multiplies the solution back onto them. For the first they are held in memory, in the type
they came in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
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
from dalr_stream.numerics.types import Matrix, Vector

Rows = NDArray[Any]

BLOCK_FEATURES = 1024
"""Features whose rows are in float64 at a time while the Gram is made: 50 MB for 6,000 rows."""

WHOLE_UP_TO = 8192
"""Rows up to which one call of BLAS adds to the Gram, at 177 GFLOP/s where the blocks of `rank_k` reach 153: they are
for many lanes, and for orders at which OpenBLAS 0.3.30 crashes in the one call (seen at 25,088)."""


def solve_dual(
    original: AffineMap, options: DalrOptions, held: list[Rows], rows: Iterable[ArrayLike], ridge: Ridge, most: int
) -> LowRankFactors:
    """Solve through the n x n Gram; `held` is emptied once that is made, and the layer is widened last."""
    turn, reached = original.reach()
    gram, outputs, mean, diagonal = _first_pass(held, reached, affine=options.affine)
    held.clear()
    lam = ridge.of_diagonal(diagonal)
    solved = _solve(gram, outputs, lam, most, options.variant, full=most == min(reached.shape))
    down = _second_pass(rows, solved.dual, mean)
    fit = dataclasses.replace(solved.fit, down=down, error=solved.fit.error - lam * float(np.vdot(down, down)))
    n, original = len(gram), original.widened()
    fitted = FittedRows("inputs", n, n, mean, original.bias + original.weight @ mean)
    fitted = noting_outliers(original, fitted, diagonal, [ridge])
    return assemble(original, options, fitted, lam, fit, turn)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """A fit whose `down` is still in terms of the rows: down = dual' X'."""

    fit: Fit
    dual: Matrix
    """(n, K)"""


def _first_pass(held: Sequence[Rows], weight: Matrix, *, affine: bool) -> tuple[Matrix, Matrix, Vector, Vector]:
    """Return the Gram (n, n) and the outputs (n, p) of the rows about their mean (d,), which is zero unless affine.

    And the squares of each feature (d,) about it.
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
        if affine:
            mean[some] = block.mean(axis=1)
            block -= mean[some, None]
        diagonal[some] = np.einsum("ij,ij->i", block, block)
        _add_gram(gram, block)
        _add_product(outputs, block.T, np.asarray(weight[:, some], np.float64).T)
    mirror_lower(gram)
    return gram, outputs, mean, diagonal


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
    eigen = symmetric_eigen(target, most)
    dual = factor.pull_back(factor.half(outputs @ eigen.vectors))
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
        error_bound=0.0 if full else max(0.0, float(np.trace(target)) - captured),
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
