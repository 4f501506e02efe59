"""Which features respond differently on two domains: the two terms of MoMaSP's Eq. 4, feature by feature.

MoMaSP adds a gap of means to a norm of covariances, whatever their units. For inspection the two stay separate, and the
gap is measured in standard deviations, so that a large feature does not look shifted because it is large.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.selection.penalties import Discrepancy
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Vector


class Shift(StrEnum):
    """What a feature is ranked by."""

    MEAN = "mean"
    COVARIANCE = "covariance"


@dataclass(frozen=True, slots=True, eq=False)
class MomentShift:
    """How far each of d features moved from the source to the target.

    Attributes
    ----------
    target_mean
        (d,): mean on the target.
    source_mean
        (d,): mean on the source.
    mean_gap
        (d,): (target mean - source mean) / pooled standard deviation, with the pooled variance (S_target,jj +
        S_source,jj) / (n_target + n_source) within the domains. For a feature that is constant on both: 0 where it
        is the same constant, else +-inf.
    covariance_shift
        (d,): || S_j: o (C_source - C_target)_j: ||, S_ij = (C_target,ii C_target,jj)^(-1/4), covariances about the
        mean (Eq. 4). 0 for features that are not live.
    live
        (d,): features that vary enough on the target for covariances to be compared in its units.
    """

    target_mean: Vector = field(repr=False)
    source_mean: Vector = field(repr=False)
    mean_gap: Vector = field(repr=False)
    covariance_shift: Vector = field(repr=False)
    live: NDArray[np.bool_] = field(repr=False)

    @property
    def features(self) -> int:
        """d."""
        return self.mean_gap.size

    def top(self, k: int, *, by: Shift | str = Shift.MEAN) -> NDArray[np.int64]:
        """Return the `k` features that moved most (all, where there are fewer), the most moved first.

        By `|mean_gap|`, or by `covariance_shift`; the lower number first where two are equal.
        """
        if k < 1:
            raise InvalidInputError(f"top: the number of features must be at least 1, got {k}")
        by = parse_choice(Shift, by, "by")
        shift = np.abs(self.mean_gap) if by is Shift.MEAN else self.covariance_shift
        return np.argsort(-shift, kind="stable")[:k]


def diff(target: Moments, source: Moments) -> MomentShift:
    """Return how far each feature moved from `source` to `target`.

    Parameters
    ----------
    target, source
        Moments of the same features on two domains.

    Returns
    -------
    MomentShift
        The shift of each feature's mean and covariances.

    Raises
    ------
    InvalidInputError
        Where one is of no rows, or of another width.

    See Also
    --------
    momasp : avoids nodes that moved.

    Notes
    -----
    Cost: d^2 operations, and 2 d^2 doubles.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rows = np.random.default_rng(0).normal(size=(100, 3))
    >>> shift = ds.numerics.diff(ds.Moments.of(rows + [0.0, 0.0, 5.0]), ds.Moments.of(rows))
    >>> shift.top(1).tolist()
    [2]
    """
    if target.features != source.features:
        raise InvalidInputError(
            f"diff: moments of {target.features} and of {source.features} features cannot be compared: "
            "not the same layer"
        )
    if not target.count or not source.count:
        raise InvalidInputError("diff: both domains need at least one row: accumulate some first")
    discrepancy = Discrepancy.of(target, source, centered=True)
    return MomentShift(
        target.mean, source.mean, _standardised_gap(target, source), discrepancy.row_norms(), live=discrepancy.live
    )


def _standardised_gap(target: Moments, source: Moments) -> Vector:
    squares = np.diagonal(target.scatter) + np.diagonal(source.scatter)
    deviation = np.sqrt(squares / (target.count + source.count))
    gap = target.mean - source.mean
    constant = deviation == 0.0  # exactly: centring leaves a constant feature without any rounding
    gap[~constant] /= deviation[~constant]
    gap[constant & (gap != 0.0)] *= np.inf
    return gap
