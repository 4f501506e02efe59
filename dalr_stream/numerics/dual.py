"""Low-rank factors from the rows themselves, where they are fewer than the features: nothing of order d x d is formed.

    M = Z X' (X X' + lam I)^-1 = Z (X'X + lam I)^-1 X'

With n rows the matrix on the right is n x n, whatever d. Rows come in blocks, twice: the first pass makes the n x n
Gram of the rows and their outputs, the second multiplies the solution back onto them. For that while the rows are held
once, in the type they came in. `anchored` needs one pass, and n x m at no time.

The rule: `anchored` goes by the outputs; else n < d goes through the dual, and n >= d through the moments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.assembly import Form, Layer, Seen, assemble, warn_of_few_rows
from dalr_stream.numerics.curves import tail_sums
from dalr_stream.numerics.lowrank import dalr
from dalr_stream.numerics.moments import Moments
from dalr_stream.numerics.psd import Route, factor_ridge, require_finite, symmetric_eigen
from dalr_stream.numerics.rank_k import add_rank_k, mirror_lower
from dalr_stream.numerics.regression import Fit, Sums, anchored, facts
from dalr_stream.numerics.ridge import DEFAULT_RIDGE, Ridge, Variant
from dalr_stream.numerics.root import root_of_rows, rooted_regression
from dalr_stream.numerics.solution import LowRankFactors

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Rows = NDArray[np.generic]

BLOCK_FEATURES = 2048
"""Features whose rows are in float64 at a time while the Gram is made: 100 MB for 6,000 rows."""


def dalr_from_rows(  # noqa: PLR0913  # the options of dalr
    weight: ArrayLike,
    bias: ArrayLike | None,
    rows: Iterable[ArrayLike],
    *,
    ridge: Ridge = DEFAULT_RIDGE,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    max_rank: int | None = None,
    root: bool = False,
) -> LowRankFactors:
    """Return what `dalr` does, from the rows that the moments would be of.

    Parameters
    ----------
    rows
        The layer's inputs in blocks (t, d), t >= 1, every row of them on the target: a list of arrays, or anything
        else that can be gone through twice, with the same rows each time.
    root
        `published` and `optimal` by the square-root route, for layers so ill-conditioned that their moments lose them.

    Other options as for `dalr`. The route and why it was taken are in the diagnostics. Equal to `dalr` on the same
    rows to 1e-8 in the product at relative ridges of 1e-6 and more, below that in the objective.

    Raises InvalidInputError as `dalr` does, and where `rows` can be gone through only once.
    Cost of the dual: n^2 d + 2 n m d operations, one eigendecomposition of order min(m, d), 2 n K d. Memory: two n x n
    and three n x m in float64, and before those the rows.
    """
    form, layer = Form.of(variant, affine=affine), Layer.of(weight, bias)
    most, d = layer.ranks(max_rank), layer.weight.shape[1]
    if isinstance(rows, Iterator):
        raise InvalidInputError("rows are gone through twice: give a list, or an object whose __iter__ begins anew")
    if form.variant is Variant.ANCHORED:
        if root:
            raise InvalidInputError("the square-root route is for published and optimal: anchored has no inverse")
        return _by_outputs(layer, form, rows, ridge, most)
    if root:
        found = _by_root(layer, form, rows, ridge, most)
    elif (held := _held(rows, d)) is None:
        return _by_moments(layer, form, rows, ridge, most)
    else:
        found = _by_dual(layer, form, held, rows, ridge, most)
    warn_of_few_rows(found.diagnostics.count, d, form.variant)
    return found


def _by_moments(layer: Layer, form: Form, rows: Iterable[ArrayLike], ridge: Ridge, most: int) -> LowRankFactors:
    """Solve as many rows as features or more from the moments of all of them."""
    d = layer.weight.shape[1]
    moments = reduce(add, (Moments.of(_block(block, d)) for block in rows))
    options: dict[str, Any] = {"variant": form.variant, "affine": form.affine, "max_rank": most}
    found = dalr(layer.weight, layer.bias, moments, ridge=ridge, **options)
    reason = f"{moments.count} rows for {d} features: by their moments; {found.diagnostics.reason}"
    return dataclasses.replace(found, diagnostics=dataclasses.replace(found.diagnostics, reason=reason))


def _by_dual(
    layer: Layer, form: Form, held: list[Rows], rows: Iterable[ArrayLike], ridge: Ridge, most: int
) -> LowRankFactors:
    """Solve through the n x n Gram; `held` is emptied once that is made."""
    turn, reached = layer.reach()
    gram, outputs, mean = _first_pass(held, reached, affine=form.affine)
    held.clear()
    lam = ridge.of_mean(float(np.trace(gram)) / mean.size)
    solved = _solve(gram, outputs, lam, most, form.variant, full=most == min(reached.shape))
    down = _second_pass(rows, solved.dual, mean)
    fit = dataclasses.replace(solved.fit, down=down, error=solved.fit.error - lam * float(np.vdot(down, down)))
    n = len(gram)
    seen = Seen("inputs", n, n, mean, layer.bias + layer.weight @ mean)
    return assemble(layer, form, seen, lam, fit, turn)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """A fit whose `down` is still in terms of the rows: down = dual' X'."""

    fit: Fit
    dual: Matrix
    """(n, K)"""


def _first_pass(held: Sequence[Rows], weight: Matrix, *, affine: bool) -> tuple[Matrix, Matrix, Vector]:
    """Return the Gram (n, n) and the outputs (n, p) of the rows about their mean (d,), which is zero unless affine."""
    n, (p, d) = sum(map(len, held)), weight.shape
    gram, outputs, mean = np.zeros((n, n)), np.zeros((n, p)), np.zeros(d)
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
        add_rank_k(gram, block)
        _add_product(outputs, block.T, weight[:, some].T)
    mirror_lower(gram)
    return gram, outputs, mean


def _solve(gram: Matrix, outputs: Matrix, lam: float, most: int, variant: Variant, *, full: bool) -> _Solved:
    """Solve for U and for the dual of `down`, (G + lam I)^-1 Z U; the fit's error lacks its -lam ||down||^2.

    With P = (G + lam I)^-1 Z and Q = G P the fitted moments M X Z' are Q'Q + lam P'Q: sums of squares, whatever lam.
    """
    factor = factor_ridge(gram, lam)
    if variant is Variant.OPTIMAL:
        p = factor.pull_back(factor.half(outputs))
        q = gram @ p
        chosen = q.T @ q
        if lam:
            chosen += lam * (p.T @ q)
        del q
        eigen = symmetric_eigen(0.5 * (chosen + chosen.T), most)
        dual = p @ eigen.vectors
        del p
    else:
        chosen = outputs.T @ outputs
        eigen = symmetric_eigen(chosen, most)
        dual = factor.pull_back(factor.half(outputs @ eigen.vectors))
    seen = gram @ dual
    explained = np.einsum("ij,ij->j", seen, seen) + lam * np.einsum("ij,ij->j", dual, seen)
    if full:
        last = lam * float(np.vdot(outputs @ eigen.vectors, dual)) if lam else 0.0
    else:
        last = float(np.vdot(outputs, outputs)) - float(explained.sum())
    kept = float(np.maximum(eigen.values, 0.0).sum())
    _, reason, rank, condition, margin = facts(factor)
    fit = Fit(
        basis=eigen.vectors,
        down=np.zeros((0, 0)),
        objective=tail_sums(explained, last),
        error=last,
        error_bound=0.0 if full else max(0.0, float(np.trace(chosen)) - kept),
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
        x = _block(block, mean.size) - mean
        if at + len(x) > len(dual):
            break
        _add_product(down, dual[at : at + len(x)].T, x)
        at += len(x)
    else:
        if at == len(dual):
            return down
    raise InvalidInputError(f"rows: {len(dual)} the first time, and not as many the second: they must be the same")


def _by_outputs(layer: Layer, form: Form, rows: Iterable[ArrayLike], ridge: Ridge, most: int) -> LowRankFactors:
    """Solve anchored from the moments of Z = W X, with the scale of S from the rows: one pass."""
    d, outputs = layer.weight.shape[1], None
    count, total, squares, shift = 0, np.zeros(d), 0.0, np.zeros(d)
    for block in rows:
        x = np.asarray(_block(block, d), dtype=np.float64)
        if count == 0:
            shift = x.mean(axis=0)
        here = Moments.of(x @ layer.weight.T)
        outputs = here if outputs is None else outputs + here
        x = x - shift
        count, total, squares = count + len(x), total + x.sum(axis=0), squares + float(np.vdot(x, x))
    if outputs is None:
        raise InvalidInputError("rows: at least one is needed, got none")
    mean = shift + total / count
    trace = squares - float(np.vdot(total, total)) / count
    if not form.affine:
        trace += count * float(np.vdot(mean, mean))
    lam = ridge.of_mean(max(trace, 0.0) / d)
    turn, reached = layer.reach()
    z = outputs.scatter if form.affine else outputs.gram
    fit = anchored(Sums(reached, z if turn is None else turn.T @ z @ turn), lam, most)
    center = mean if form.affine else np.zeros(d)
    seen = Seen("inputs", count, count, center, layer.bias + layer.weight @ center)
    return assemble(layer, form, seen, lam, fit, turn)


def _by_root(layer: Layer, form: Form, rows: Iterable[ArrayLike], ridge: Ridge, most: int) -> LowRankFactors:
    """Solve by singular values."""
    d = layer.weight.shape[1]
    root = root_of_rows((_block(block, d) for block in rows), affine=form.affine)
    turn, reached = layer.reach()
    lam = ridge.of_mean(float(np.vdot(root.triangle, root.triangle)) / d)
    center = root.mean if form.affine else np.zeros(d)
    seen = Seen("inputs", root.count, root.count, center, layer.bias + layer.weight @ center)
    return assemble(layer, form, seen, lam, rooted_regression(reached, root, lam, most, form.variant), turn)


def _held(rows: Iterable[ArrayLike], features: int) -> list[Rows] | None:
    """Return the blocks of fewer rows than features; None as soon as there are as many."""
    held: list[Rows] = []
    count = 0
    for block in rows:
        held.append(_block(block, features))
        count += len(held[-1])
        if count >= features:
            return None
    if count == 0:
        raise InvalidInputError("rows: at least one is needed, got none")
    return held


def _block(block: ArrayLike, features: int) -> NDArray[Any]:
    """Return one block of rows (t, d), validated."""
    x = np.asarray(block)
    if x.ndim != 2 or x.shape[1] != features:
        raise InvalidInputError(f"rows: blocks must be of {features} features, got shape {x.shape}")
    require_finite(x, "rows")
    return x


def _add_product(total: Matrix, left: Matrix, right: Matrix) -> None:
    """Add left @ right to `total` (r, c), C order, in place: numpy would make the product apart."""
    blas.dgemm(1.0, np.ascontiguousarray(right).T, np.ascontiguousarray(left).T, 1.0, total.T, overwrite_c=1)
