"""Truncated SVD of a layer's weight: the baseline that sees no data, but for the compensated bias."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from dalr_stream.numerics.diagnostics import Diagnostics, Route
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.linalg.psd import numerical_rank, tail_sums, thin_svd
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors, factors_of
from dalr_stream.numerics.lowrank.problem import AnyMoments, Problem, problems_of
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.rows.streams import Side


@overload
def truncated_svd(weight: Layer, *, compensate_bias: bool = False, side: Side | str | None = None) -> Factors: ...
@overload
def truncated_svd(
    weight: ArrayLike,
    bias: ArrayLike | None,
    moments: AnyMoments | None = None,
    *,
    compensate_bias: bool = False,
    side: Side | str | None = None,
) -> LowRankFactors: ...
def truncated_svd(
    weight: ArrayLike | Layer,
    bias: ArrayLike | None = None,
    moments: AnyMoments | None = None,
    *,
    compensate_bias: bool = False,
    side: Side | str | None = None,
) -> Factors:
    """Truncate the SVD of the weight, at every rank (section 4.1); with Eq. 4's bias where `compensate_bias`.

    W ~ U_k diag(s_k) V_k' whatever the data; the compensated bias is mean(y) - W_k mean(x).

    Parameters
    ----------
    weight
        (m, d), any float dtype; solved in float64. Or a `Layer`, which brings bias and moments.
    bias
        (m,), or None for none.
    moments, side
        As for `dalr`. Needed for the compensated bias alone.
    compensate_bias
        Give each rank the bias that keeps the mean output.

    Returns
    -------
    LowRankFactors or GroupedFactors
        The factors of every rank; `GroupedFactors` for a layer in several groups.

    Raises
    ------
    InvalidInputError
        Where shapes disagree, a value is not finite, or moments are missing.

    See Also
    --------
    dalr : takes the data into account.

    Notes
    -----
    Cost: one SVD, at least about 6 m d min(m, d) operations.

    Source: Masana et al., Domain-adaptive deep network compression, ICCV 2017, section 4.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> weight = np.diag([3.0, 2.0, 1.0])
    >>> pair = ds.truncated_svd(weight, None).at_rank(1)
    >>> (pair.up @ pair.down).round(6).tolist()
    [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    problems = problems_of(weight, bias, moments, side)
    return factors_of([_truncated(problem.widened(), compensate_bias=compensate_bias) for problem in problems])


def _truncated(problem: Problem, *, compensate_bias: bool) -> LowRankFactors:
    weight = problem.original.weight
    if problem.moments is not None or compensate_bias:
        problem.checked_moments()
    fitted = problem.fitted_rows(adjusts_bias=compensate_bias)
    svd = thin_svd(weight)
    return LowRankFactors(
        method=Method.SVD_BC if compensate_bias else Method.SVD,
        weight=weight,
        basis=svd.left,
        down=np.multiply(svd.right, svd.values[:, None], out=svd.right),
        center=fitted.center,
        offset=fitted.offset,
        objective=tail_sums(svd.values**2, 0.0),
        diagnostics=Diagnostics(
            fitted.count,
            fitted.samples,
            weight.shape[1],
            numerical_rank(svd.values),
            0.0,
            Route.SVD.value,
            source=fitted.source,
            reason="the weight alone decides",
            condition=float(svd.values[0] / svd.values[-1]) if svd.values[-1] > 0.0 else None,
        ),
    )
