"""Low-rank layers: domain-adaptive low rank (DALR), at one ridge or several.

Each solves a rank-constrained regression of a layer's outputs Z on its inputs X from moments alone: no data, no
inverse, every rank from one decomposition; `regression` has the three variants. The moments are those of the inputs,
where Z = W X; of the outputs alone, which is all that `anchored` needs then; or of both from two runs, where X comes
from an already compressed network and Z from the original one. A layer with more outputs than inputs is first turned
onto the d directions it can reach (W = Q T), so that full rank is exact even where the data say nothing.

Source: Masana et al., Domain-adaptive deep network compression, ICCV 2017, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from numpy.typing import ArrayLike

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.assembly import warn_of_few_rows
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors, factors_of
from dalr_stream.numerics.lowrank.output_metric import DEFAULT_GRADIENT_RIDGE
from dalr_stream.numerics.lowrank.problem import AnyMoments, problems_of
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.lowrank.solving import require_decidable, solved
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.statistics.moments import Moments


@overload
def dalr(
    weight: Layer,
    *,
    ridge: Ridge | float | str = DEFAULT_RIDGE,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    compensate_bias: bool = False,
    side: Side | str | None = None,
    max_rank: int | None = None,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> Factors: ...
@overload
def dalr(
    weight: ArrayLike,
    bias: ArrayLike | None,
    moments: AnyMoments,
    *,
    ridge: Ridge | float | str = DEFAULT_RIDGE,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    compensate_bias: bool = False,
    side: Side | str | None = None,
    max_rank: int | None = None,
    gradients: Moments | None = None,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> LowRankFactors: ...
def dalr(  # noqa: PLR0913  # each keyword is one decision of the papers, or of what was watched
    weight: ArrayLike | Layer,
    bias: ArrayLike | None = None,
    moments: AnyMoments | None = None,
    *,
    ridge: Ridge | float | str = DEFAULT_RIDGE,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    compensate_bias: bool = False,
    side: Side | str | None = None,
    max_rank: int | None = None,
    gradients: Moments | None = None,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> Factors:
    """Return the best low-rank replacement of a weight at every rank, on the rows that `moments` describe (DALR).

    Parameters
    ----------
    weight
        (m, d), any float dtype; solved in float64. Or a `Layer`, which brings bias and moments: `dalr(layer)`.
    bias
        (m,), or None for none.
    moments
        Of the layer's inputs on the target domain; of its outputs y = W x + b with `side="outputs"`, `anchored` only,
        when nothing of order d is formed; or `CrossMoments`, of inputs in one run and outputs in another.
    ridge
        A number r, or `Ridge.relative(r)`, is r x the mean diagonal of S, the inputs' moments, for all variants. A
        feature of more than 1,000 times their median counts as that in the mean, and is warned of. From
        outputs alone S is not known: it is r x tr(Z Z') / tr(W W') there, its mean as W weighs it.
        `Ridge.absolute(l)` is l itself; "shrinkage", or `Ridge.shrinkage()`, what the moments decide by themselves.
    variant
        `Variant` or its value.
    affine
        Centre the moments and give each rank its optimal bias. By default all but `published`, printed without;
        `weighted` is never without.
    compensate_bias
        Eq. 4's bias on raw moments, "DALR + BC" of the tables: with `published` and without `affine` only, as
        affine contains it.
    side
        Which side of the layer `moments` are of; means nothing with cross moments. By default its inputs, and for a
        `Layer` of which only the outputs are known those.
    max_rank
        K, where only ranks up to it are asked for: saves time and memory. Above min(m, d) it has no effect.
    gradients
        Moments of the gradients of the loss by the layer's outputs, for `weighted`; a `Layer` brings its own.
    gradient_ridge
        Of G, their second moment, for `weighted`: relative to its mean diagonal, or as `ridge`. What an error counts
        in directions that no gradient was seen in.

    Returns
    -------
    LowRankFactors or GroupedFactors
        The factors of every rank; `GroupedFactors` for a layer in several groups, each solved by itself.

    Raises
    ------
    InvalidInputError
        Where shapes disagree, a value is not finite, there are no rows, or options conflict.
    RankError
        For a `max_rank` below 1.

    Warns
    -----
    FewSamplesWarning
        Where fewer rows than features leave S singular: `published` and `optimal` then fit the sample perfectly at a
        small ridge. `anchored` and `weighted` need no such warning: what the data do not determine stays as in W.

    See Also
    --------
    truncated_svd : the baseline, which sees no data.
    dalr_stream.numerics.dalr_sweep : several ridges at the cost of little more than one.
    dalr_stream.numerics.dalr_from_rows : from the rows, where they are fewer than features.

    Notes
    -----
    Singular S at ridge 0 gives the solution of minimum norm (for `anchored` the one nearest to W); the route is in
    the diagnostics. `published` and `optimal` solve a `Layer` that has its rows, fewer of them than features, from
    these (see `lowrank.dual`): nothing of order d x d is formed then. `weighted` minimises, with G = E[g g'],
    tr((G + gamma I)(W - C)(S + lambda I)(W - C)'), of which `anchored` is the case G = I.

    Cost: one eigendecomposition of order min(m, d), 2 m d^2 + 2 m^2 d operations; `published` and `optimal` about
    4 m d^2 + d^3 / 3 more, `weighted` 9 m^3 + 4 m^2 d; from outputs 2 m^2 d alone. Memory: a few m x d; for `published`
    and `optimal` S too, and three times that where Cholesky is refused.

    Source: Masana et al., Domain-adaptive deep network compression, ICCV 2017, section 4; `weighted`: Generalized
    Fisher-Weighted SVD, arXiv 2505.17974, with a ridge on both sides.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> weight, bias, inputs = rng.normal(size=(10, 6)), rng.normal(size=10), rng.normal(size=(200, 6))
    >>> moments = ds.Moments.of(inputs)
    >>> factors = ds.dalr(weight, bias, moments, ridge=1e-3)
    >>> pair = factors.at_rank(2)
    >>> pair.down.shape, pair.up.shape, pair.bias.shape
    ((2, 6), (10, 2), (10,))
    >>> errors = factors.errors(moments)  # squared, at ranks 0 to 6
    >>> bool(errors[2] < errors[1] < errors[0])
    True
    """
    options = DalrOptions.of(variant, affine=affine, compensate_bias=compensate_bias)
    problems = problems_of(weight, bias, moments, side, gradients, Ridge.of(gradient_ridge))
    rows, features = require_decidable(problems, options)
    warn_of_few_rows(rows, features, options.variant)
    return factors_of([solved(problem, options, max_rank, (Ridge.of(ridge),))[0] for problem in problems])


@overload
def dalr_sweep(
    weight: Layer,
    *,
    ridges: Sequence[Ridge | float | str],
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    side: Side | str | None = None,
    max_rank: int | None = None,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> tuple[Factors, ...]: ...
@overload
def dalr_sweep(
    weight: ArrayLike,
    bias: ArrayLike | None,
    moments: AnyMoments,
    ridges: Sequence[Ridge | float | str],
    *,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    side: Side | str | None = None,
    max_rank: int | None = None,
    gradients: Moments | None = None,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> tuple[LowRankFactors, ...]: ...
def dalr_sweep(  # noqa: PLR0913  # the options of dalr
    weight: ArrayLike | Layer,
    bias: ArrayLike | None = None,
    moments: AnyMoments | None = None,
    ridges: Sequence[Ridge | float | str] = (),
    *,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    side: Side | str | None = None,
    max_rank: int | None = None,
    gradients: Moments | None = None,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> tuple[Factors, ...]:
    """Return what `dalr` does at each of several `ridges`, from one decomposition of the inputs' moments.

    Parameters
    ----------
    weight, bias, moments, variant, affine, side, max_rank, gradients, gradient_ridge
        As for `dalr`; of a `Layer` it is `dalr_sweep(layer, ridges=[1e-4, 1e-3])`.
    ridges
        At least one; a number is relative.

    Returns
    -------
    tuple of LowRankFactors or GroupedFactors
        The factors of every rank, one record for each ridge in the given order.

    Raises
    ------
    InvalidInputError
        For no ridges, and as `dalr` does.

    See Also
    --------
    choose_ridge : the ridge with the least error on unseen rows.

    Notes
    -----
    What does not depend on the ridge is computed once: the eigenvectors of S, which serve every lambda, and the
    products with W. One eigendecomposition of order min(m, d) is left for each ridge. The route is by eigenvalues, so
    results equal those of `dalr` to rounding, not to the bit.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> layer = ds.Layer("fc", rng.normal(size=(10, 6)), None, inputs=ds.Moments.of(rng.normal(size=(200, 6))))
    >>> [factors.diagnostics.ridge > 0 for factors in ds.numerics.dalr_sweep(layer, ridges=[1e-4, 1e-2])]
    [True, True]
    """
    if not ridges:
        raise InvalidInputError("a sweep needs at least one ridge, got none")
    options, lambdas = DalrOptions.of(variant, affine=affine), tuple(map(Ridge.of, ridges))
    problems = problems_of(weight, bias, moments, side, gradients, Ridge.of(gradient_ridge))
    rows, features = require_decidable(problems, options)
    warn_of_few_rows(rows, features, options.variant)
    by_group = [solved(problem, options, max_rank, lambdas) for problem in problems]
    return tuple(factors_of(groups) for groups in zip(*by_group, strict=True))
