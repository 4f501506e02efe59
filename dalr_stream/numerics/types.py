"""The arrays that records and formulas are made of, defined once, and what of the caller's arrays is taken for one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dalr_stream.errors import InvalidInputError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
"""Numbers of features, nodes, samples or ranks."""
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]


def real_array(values: ArrayLike, what: str) -> NDArray[Any]:
    """Return an array of real numbers; raises InvalidInputError where numpy would drop a mask or imaginary parts."""
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidInputError(
            f"{what} must be a plain array, got a masked one, whose mask would be lost: fill it, or leave out rows"
        )
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InvalidInputError(f"{what} must be real numbers, got an array of {array.dtype}")
    return array
