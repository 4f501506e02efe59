"""Ranks by the ratio of kept singular values to all of them, as MoMaSP suggests for DALR (section 2)."""

from __future__ import annotations

import numpy as np

from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.options import require_share
from dalr_stream.numerics.sizes.sized_layer import RESOLUTION
from dalr_stream.numerics.types import Vector


def singular_values(factors: Factors) -> Vector:
    """Return the singular values that a low-rank method truncates, those of all groups of a convolution together.

    Each rank lowers the method's objective by the square of one of them: those of W for truncated SVD, of the outputs
    for DALR, shrunk by its ridge.

    Parameters
    ----------
    factors
        From `dalr`, `truncated_svd` or `solve`.

    Returns
    -------
    numpy.ndarray
        (K,): by rank, of a convolution's groups the sum.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> ds.numerics.singular_values(ds.truncated_svd(np.diag([4.0, 3.0, 1.0]), None)).round(6).tolist()
    [4.0, 3.0, 1.0]
    """
    falls = [np.maximum(-np.diff(part.objective), 0.0) for part in factors.parts]
    return np.asarray(np.sum(np.sqrt(falls), axis=0))


def rank_by_singular_values(factors: Factors, share: float) -> int:
    """Return the smallest rank whose singular values are at least `share` of the sum of all.

    Parameters
    ----------
    factors
        From `dalr`, `truncated_svd` or `solve`.
    share
        0 < share <= 1.

    Returns
    -------
    int
        A rank, 1 where all singular values are 0.

    Raises
    ------
    InvalidInputError
        For a share outside its range.

    See Also
    --------
    by_energy : by squares, and of what a layer's outputs lose.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> factors = ds.truncated_svd(np.diag([4.0, 3.0, 1.0]), None)
    >>> ds.numerics.rank_by_singular_values(factors, 0.8)
    2
    """
    require_share(share, "singular_values")
    carried = np.cumsum(singular_values(factors))
    return int(np.searchsorted(carried, share * carried[-1] * (1.0 - RESOLUTION))) + 1
