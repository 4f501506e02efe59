"""Low-rank layers: truncated SVD, and domain-adaptive low rank (DALR).

All of them solve a rank-constrained regression of a layer's outputs Z on its inputs X from moments alone: no data, no
inverse, every rank from one decomposition; `regression` has the three variants. The moments are those of the inputs,
where Z = W X; of the outputs alone, which is all that `anchored` needs then; or of both from two runs, where X comes
from an already compressed network and Z from the original one. A layer with more outputs than inputs is first turned
onto the d directions it can reach (W = Q T), so that full rank is exact even where the data say nothing.

Source: Masana et al., Domain-adaptive deep network compression, ICCV 2017, section 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Diagnostics, Route
from dalr_stream.numerics.linalg.psd import numerical_rank, symmetric_eigen, tail_sums, thin_svd
from dalr_stream.numerics.linalg.ridge_factor import EigenFactor, RidgeFactor, factor_ridge
from dalr_stream.numerics.lowrank.assembly import AffineMap, Seen, assemble, warn_of_few_rows
from dalr_stream.numerics.lowrank.factors import LowRankFactors, require_moments_of
from dalr_stream.numerics.lowrank.regression import Fit, Sums, anchored, anchored_across, regression
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.methods import DalrOptions, Method, Variant
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector

AnyMoments = Moments | CrossMoments


def truncated_svd(
    weight: ArrayLike,
    bias: ArrayLike | None,
    moments: AnyMoments | None = None,
    *,
    compensate_bias: bool = False,
    side: Side | str = Side.INPUTS,
) -> LowRankFactors:
    """Truncate the SVD of the weight, at every rank (section 4.1); with Eq. 4's bias where `compensate_bias`.

    W ~ U_k diag(s_k) V_k' whatever the data; the compensated bias is mean(y) - W_k mean(x).

    Parameters
    ----------
    weight
        (m, d), any float dtype; solved in float64.
    bias
        (m,), or None for none.
    moments, side
        As for `dalr`. Needed for the compensated bias alone.

    Raises InvalidInputError where shapes disagree, a value is not finite, or moments are missing.
    Cost: one SVD, about 6 m d min(m, d) operations and more.
    """
    layer = AffineMap.of(weight, bias)
    if moments is None and compensate_bias:
        raise InvalidInputError("bias compensation needs the moments of the layer's inputs, got none")
    watched = parse_choice(Side, side, "side")
    seen = Seen("none", 0, 0, np.zeros(layer.weight.shape[1]), layer.bias)
    if moments is not None:
        require_moments_of(layer.weight, moments, watched)
        seen = _seen(layer, moments, watched, adjusts_bias=compensate_bias)
    svd = thin_svd(layer.weight)
    s2 = svd.values**2
    return LowRankFactors(
        method=Method.SVD_BC if compensate_bias else Method.SVD,
        weight=layer.weight,
        basis=svd.left,
        down=svd.values[:, None] * svd.right,
        center=seen.center,
        offset=seen.offset,
        objective=tail_sums(s2, 0.0),
        diagnostics=Diagnostics(
            seen.count,
            seen.samples,
            layer.weight.shape[1],
            numerical_rank(svd.values),
            0.0,
            Route.SVD.value,
            source=seen.source,
            reason="the weight alone decides",
            condition=float(svd.values[0] / svd.values[-1]) if svd.values[-1] > 0.0 else None,
        ),
    )


def dalr(  # noqa: PLR0913  # each keyword is one decision of the papers, or of what was watched
    weight: ArrayLike,
    bias: ArrayLike | None,
    moments: AnyMoments,
    *,
    ridge: Ridge = DEFAULT_RIDGE,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    compensate_bias: bool = False,
    side: Side | str = Side.INPUTS,
    max_rank: int | None = None,
) -> LowRankFactors:
    """Domain-adaptive low rank: the weight's best stand-in, at every rank, on the rows that `moments` describe.

    Parameters
    ----------
    weight
        (m, d), any float dtype; solved in float64.
    bias
        (m,), or None for none.
    moments
        Of the layer's inputs on the target domain; of its outputs y = W x + b with `side="outputs"`, `anchored` only,
        when nothing of order d is formed; or `CrossMoments`, of inputs in one run and outputs in another.
    ridge
        `Ridge.relative(r)` is r x the mean diagonal of S, the inputs' moments, for all three variants. From outputs
        alone that is not known: it is r x tr(Z Z') / tr(W W') there, the mean of S as W weighs it.
    variant
        `Variant` or its value.
    affine
        Centre the moments and give each rank its optimal bias. By default all but `published`, printed without.
    compensate_bias
        Eq. 4's bias on raw moments, "DALR + BC" of the tables: with `published` and without `affine` only, as
        affine contains it.
    side
        Which side of the layer `moments` are of; means nothing with cross moments.
    max_rank
        K, where only ranks up to it are asked for: saves time and memory. Larger than min(m, d) is the same as none.

    Fewer rows than features leave S singular: `published` and `optimal` then fit the sample perfectly at a small
    ridge, so FewSamplesWarning is given and noted. `anchored` needs no such warning: what the data do not determine
    stays as it was in W. Singular S at ridge 0 gives the solution of minimum norm (for `anchored` the one nearest to
    W); the route is in the diagnostics.

    Raises InvalidInputError where shapes disagree, a value is not finite, there are no rows, or options conflict, and
    RankError for a `max_rank` below 1.
    Cost: one eigendecomposition of order min(m, d), 2 m d^2 + 2 m^2 d operations; `published` and `optimal` about
    4 m d^2 + d^3 / 3 more; from outputs 2 m^2 d alone. Memory: S and a few m x d.
    """
    form = DalrOptions.of(variant, affine=affine, compensate_bias=compensate_bias)
    layer, watched = AffineMap.of(weight, bias), parse_choice(Side, side, "side")
    _require_decidable(layer, moments, form, watched)
    warn_of_few_rows(moments.count, layer.weight.shape[1], form.variant)
    return _solved(layer, moments, form, watched, layer.ranks(max_rank), (ridge,))[0]


def dalr_sweep(  # noqa: PLR0913  # the options of dalr
    weight: ArrayLike,
    bias: ArrayLike | None,
    moments: AnyMoments,
    ridges: Sequence[Ridge],
    *,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    side: Side | str = Side.INPUTS,
    max_rank: int | None = None,
) -> tuple[LowRankFactors, ...]:
    """Return what `dalr` does at each of several `ridges`, from one decomposition of the inputs' moments.

    Options as for `dalr`. What does not depend on the ridge is computed once: the eigenvectors of S, which serve every
    lambda, and the products with W. One eigendecomposition of order min(m, d) a ridge is left. The route is by
    eigenvalues, so results equal those of `dalr` to rounding, not to the bit.
    """
    form = DalrOptions.of(variant, affine=affine)
    layer, watched = AffineMap.of(weight, bias), parse_choice(Side, side, "side")
    _require_decidable(layer, moments, form, watched)
    warn_of_few_rows(moments.count, layer.weight.shape[1], form.variant)
    if not ridges:
        raise InvalidInputError("a sweep needs at least one ridge, got none")
    return _solved(layer, moments, form, watched, layer.ranks(max_rank), tuple(ridges))


def _solved(
    layer: AffineMap, moments: AnyMoments, form: DalrOptions, side: Side, most: int, ridges: tuple[Ridge, ...]
) -> tuple[LowRankFactors, ...]:
    """Solve for each ridge."""
    for ridge in ridges:
        Ridge.require(ridge)
    turn, reached = (None, layer.weight) if isinstance(moments, CrossMoments) else layer.reach()
    sums = _sums(layer, moments, form, side, turn, reached)
    if form.variant is Variant.ANCHORED and sums.cross is None:
        sums = dataclasses.replace(sums, own=reached @ reached.T)
    seen = _seen(layer, moments, side, adjusts_bias=form.adjusts_bias, own=sums.own if turn is None else None)
    factored = _factoring(sums, form, len(ridges))
    found = []
    for ridge in ridges:
        lam = ridge.of_mean(sums.ridge_scale)
        found.append(assemble(layer, form, seen, lam, _fit(sums, lam, most, factored, form.variant), turn))
    return tuple(found)


def _fit(sums: Sums, lam: float, most: int, factored: Callable[[float], RidgeFactor], variant: Variant) -> Fit:
    if variant is not Variant.ANCHORED:
        return regression(sums, lam, most, factored(lam), variant)
    return anchored(sums, lam, most) if sums.cross is None else anchored_across(sums, lam, most, factored(lam))


def _factoring(sums: Sums, form: DalrOptions, ridges: int) -> Callable[[float], RidgeFactor]:
    """Return what factors S + lam I: anew for one ridge, from one eigendecomposition for several."""
    s = sums.inputs
    if s is None or (form.variant is Variant.ANCHORED and sums.cross is None) or ridges == 1:
        return lambda lam: factor_ridge(sums.known_inputs, lam)
    eigen = symmetric_eigen(s)
    return lambda lam: EigenFactor.of(eigen, lam)


def _sums(
    layer: AffineMap, moments: AnyMoments, form: DalrOptions, side: Side, turn: Matrix | None, reached: Matrix
) -> Sums:
    """Second moments about the means where affine, else of X about zero and of Y about the bias, which is Z about 0."""
    if isinstance(moments, CrossMoments):
        x, y = moments.inputs, moments.outputs
        if form.affine:
            return Sums(layer.weight, y.scatter, x.scatter, moments.cross_scatter)
        between = moments.cross_scatter_about(np.zeros(x.features), layer.bias)
        return Sums(layer.weight, y.scatter_about(layer.bias), x.gram, between)
    if side is Side.INPUTS:
        return Sums.of_inputs(reached, moments.scatter if form.affine else moments.gram)
    outputs = moments.scatter if form.affine else moments.scatter_about(layer.bias)
    return Sums(reached, outputs if turn is None else turn.T @ outputs @ turn)


def _seen(layer: AffineMap, moments: AnyMoments, side: Side, *, adjusts_bias: bool, own: Matrix | None = None) -> Seen:
    """Return where the rows came from, and their centres where the bias depends on them; `own` is W W' (m, m)."""
    source = "cross" if isinstance(moments, CrossMoments) else side.value
    center, offset = np.zeros(layer.weight.shape[1]), layer.bias
    if adjusts_bias and isinstance(moments, CrossMoments):
        center, offset = moments.inputs.mean.copy(), moments.outputs.mean.copy()
    elif adjusts_bias and isinstance(moments, Moments) and side is Side.INPUTS:
        center = moments.mean.copy()
        offset = layer.bias + layer.weight @ center
    elif adjusts_bias and isinstance(moments, Moments):
        center, offset = _inputs_behind(layer.weight, moments.mean - layer.bias, own), moments.mean.copy()
    return Seen(source, moments.count, moments.samples, center, offset)


def _inputs_behind(weight: Matrix, z: Vector, own: Matrix | None) -> Vector:
    """Return the shortest c (d,) with W c = z (m,): any such centre gives the same bias where W_k = U_k U_k'W.

    By the normal equations W W' and one step of refinement. Cost: m^2 d + m^3 / 3 operations.
    """
    factor = factor_ridge(weight @ weight.T if own is None else own, 0.0)
    center = weight.T @ factor.pull_back(factor.half(z[:, None]))[:, 0]
    left = z - weight @ center
    return center + weight.T @ factor.pull_back(factor.half(left[:, None]))[:, 0]


def _require_decidable(layer: AffineMap, moments: AnyMoments, form: DalrOptions, side: Side) -> None:
    """Raise where these moments do not fit the layer or do not decide this variant."""
    if side is Side.OUTPUTS and not isinstance(moments, CrossMoments) and form.variant is not Variant.ANCHORED:
        raise InvalidInputError(
            f"moments of the outputs alone decide the anchored variant, not {form.variant.value!r}: that needs those "
            "of the inputs, or the rows (dalr_from_rows)"
        )
    require_moments_of(layer.weight, moments, side)
