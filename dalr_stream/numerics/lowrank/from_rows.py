"""Low-rank factors from the rows themselves, by the route that their number and the variant decide.

The rule: `anchored` goes by the moments of the outputs, one pass; `published` and `optimal` go through the dual where
rows are fewer than features, else through the moments; through the square root of the moments only when asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import ArrayLike

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.lowrank.assembly import assemble, noting_outliers, warn_of_few_rows
from dalr_stream.numerics.lowrank.dual import checked_block, held_rows, solve_dual
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.problem import AffineMap, FittedRows
from dalr_stream.numerics.lowrank.regression import Sums, anchored
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.lowrank.square_root import root_of_rows, rooted_regression
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.statistics.moments import Moments


def dalr_from_rows(  # noqa: PLR0913  # the options of dalr
    weight: ArrayLike,
    bias: ArrayLike | None,
    rows: Iterable[ArrayLike],
    *,
    ridge: Ridge | float = DEFAULT_RIDGE,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    max_rank: int | None = None,
    root: bool = False,
) -> LowRankFactors:
    """Return what `dalr` does, from the rows themselves instead of their moments.

    Parameters
    ----------
    weight, bias, ridge, variant, affine, max_rank
        As for `dalr`.
    rows
        The layer's inputs in blocks (t, d), t >= 1, every row of them on the target: a list of arrays, or anything
        else that can be gone through twice, with the same rows each time, such as `Store.rows`.
    root
        `published` and `optimal` by the square-root route, for layers so ill-conditioned that their moments lose them.

    Returns
    -------
    LowRankFactors
        The factors of every rank; the route, and why it was taken, are in the diagnostics.

    Raises
    ------
    InvalidInputError
        As `dalr` does, and where `rows` can be gone through only once.

    See Also
    --------
    dalr : from moments.

    Notes
    -----
    Equal to `dalr` on the same rows to 1e-8 in the product at relative ridges of 1e-6 and more, below that in the
    objective. Cost of the dual: n^2 d + 2 n m d operations, one eigendecomposition of order min(m, d), 2 n K d. Memory:
    two n x n and three n x m in float64, and before those the rows.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> weight, blocks = rng.normal(size=(10, 6)), [rng.normal(size=(50, 6)) for _ in range(4)]
    >>> one = ds.numerics.dalr_from_rows(weight, None, blocks).at_rank(2)
    >>> other = ds.dalr(weight, None, ds.Moments.of(np.concatenate(blocks))).at_rank(2)
    >>> np.allclose(one.up @ one.down, other.up @ other.down)
    True
    """
    lam = Ridge.of(ridge)
    options, original = DalrOptions.of(variant, affine=affine), AffineMap.as_given(weight, bias)
    most, d = original.ranks(max_rank), original.weight.shape[1]
    if isinstance(rows, Iterator):
        raise InvalidInputError("rows are iterated twice: give a list, or an object whose __iter__ starts over")
    if options.variant is Variant.WEIGHTED:
        raise InvalidInputError("variant 'weighted' is solved from moments: dalr(..., gradients=...)")
    if options.variant is Variant.ANCHORED:
        if root:
            raise InvalidInputError("the square-root route is for published and optimal: anchored has no inverse")
        return _by_outputs(original.widened(), options, rows, lam, most)
    if root:
        factors = _by_root(original.widened(), options, rows, lam, most)
    elif (held := held_rows(rows, d)) is None:
        return _by_moments(original.widened(), options, rows, lam, most)
    else:
        factors = solve_dual(original, options, held, rows, lam, most)
    warn_of_few_rows(factors.diagnostics.count, d, options.variant)
    return factors


def _by_moments(
    original: AffineMap, options: DalrOptions, rows: Iterable[ArrayLike], ridge: Ridge, most: int
) -> LowRankFactors:
    """Solve as many rows as features or more from the moments of all of them."""
    d = original.weight.shape[1]
    moments = reduce(add, (Moments.of(checked_block(block, d)) for block in rows))
    factors = dalr(
        original.weight,
        original.bias,
        moments,
        ridge=ridge,
        variant=options.variant,
        affine=options.affine,
        max_rank=most,
    )
    reason = f"{moments.count} rows for {d} features: by their moments; {factors.diagnostics.reason}"
    return dataclasses.replace(factors, diagnostics=dataclasses.replace(factors.diagnostics, reason=reason))


def _by_outputs(
    original: AffineMap, options: DalrOptions, rows: Iterable[ArrayLike], ridge: Ridge, most: int
) -> LowRankFactors:
    """Solve anchored from the moments of Z = W X, with the scale of S from the rows: one pass."""
    d, outputs = original.weight.shape[1], None
    count, total, squares, shift = 0, np.zeros(d), np.zeros(d), np.zeros(d)
    for block in rows:
        x = np.asarray(checked_block(block, d), dtype=np.float64)
        if count == 0:
            shift = x.mean(axis=0)
        here = Moments.of(x @ original.weight.T)
        outputs = here if outputs is None else outputs + here
        x = x - shift
        count, total, squares = count + len(x), total + x.sum(axis=0), squares + np.einsum("ij,ij->j", x, x)
    if outputs is None:
        raise InvalidInputError("rows: at least one is needed, got none")
    mean = shift + total / count
    diagonal = squares - total * total / count
    if not options.affine:
        diagonal += count * mean * mean
    lam = ridge.of_diagonal(np.maximum(diagonal, 0.0))
    turn, reached = original.reach()
    z = outputs.scatter if options.affine else outputs.gram
    fit = anchored(Sums(reached, z if turn is None else turn.T @ z @ turn), lam, most)
    center = mean if options.affine else np.zeros(d)
    fitted = FittedRows("inputs", count, count, center, original.bias + original.weight @ center)
    fitted = noting_outliers(original, fitted, diagonal, [ridge])
    return assemble(original, options, fitted, lam, fit, turn)


def _by_root(
    original: AffineMap, options: DalrOptions, rows: Iterable[ArrayLike], ridge: Ridge, most: int
) -> LowRankFactors:
    """Solve by singular values."""
    d = original.weight.shape[1]
    root = root_of_rows((checked_block(block, d) for block in rows), affine=options.affine)
    turn, reached = original.reach()
    diagonal = np.einsum("ij,ij->j", root.triangle, root.triangle)
    lam = ridge.of_matrix(diagonal, root.squares, root.count)
    center = root.mean if options.affine else np.zeros(d)
    fitted = FittedRows("inputs", root.count, root.count, center, original.bias + original.weight @ center)
    fitted = noting_outliers(original, fitted, diagonal, [ridge]).noting(ridge)
    return assemble(original, options, fitted, lam, rooted_regression(reached, root, lam, most, options.variant), turn)
