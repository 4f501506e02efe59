"""CuPy for the device fold: rows that lie in a store are folded on a CUDA device, and torch is not needed."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.statistics.array_fold import ArrayLibrary

NAME = "cupy"


def cupy_library() -> ArrayLibrary:
    """Return the fold's view of CuPy, on its current device.

    Raises InvalidInputError where CuPy is not installed, sees no device, or is told to take products in TF32.
    """
    cupy = _cupy()
    return ArrayLibrary(
        f"{NAME}:cuda",
        array_api_compat.array_namespace(cupy.empty(0)),
        cupy.asarray,
        cupy.asnumpy,
        _add_product,
    )


@cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        raise InvalidInputError(
            "device 'cupy' needs CuPy, which is not installed: pip install 'dalr_stream[cupy]', or fold with torch by "
            "device = 'cuda'"
        ) from None
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise InvalidInputError(f"device 'cupy' cannot be used here: {error}: leave the device out") from None
    if devices == 0:
        raise InvalidInputError("device 'cupy' is not there: CuPy sees no CUDA device: leave the device out")
    if os.environ.get("CUPY_TF32", "0") not in ("", "0"):
        raise InvalidInputError(
            "CUPY_TF32 is set, and float32 products would keep 11 bits only: unset it before folding on 'cupy'"
        )
    return cupy


def _add_product(target: Any, left: Any, right: Any) -> None:
    """Add `left.T @ right` to a contiguous matrix by one call of cuBLAS."""
    from cupy import cublas

    cublas.gemm("T", "N", left, right, out=target, alpha=1.0, beta=1.0)


def pinned(rows: NDArray[Any]) -> NDArray[Any]:
    """Copy rows into page-locked memory, from which they reach the device without a copy in between."""
    import cupyx

    locked: NDArray[Any] = cupyx.empty_pinned(rows.shape, rows.dtype)
    np.copyto(locked, rows)
    return locked
