"""CuPy for the device fold: rows that lie in a store are folded on a CUDA device, and torch is not needed."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.statistics.array_fold import ArrayFold, ArrayLibrary
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.folding import FoldState, Workspace


def cupy_backend() -> Backend:
    """Return how rows are handled and folded by CuPy, on its current device.

    Raises InvalidInputError where CuPy is not installed, sees no device, or is told to take products in TF32.
    """
    library = cupy_library()
    return Backend(_cupy_fold, library.xp.concat, library.to_host, _staged, stack=None)


def cupy_library() -> ArrayLibrary:
    """Return the fold's view of CuPy; raises as `cupy_backend` does."""
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
        raise InvalidInputError("device 'cupy' cannot be used: CuPy sees no CUDA device: leave the device out")
    if os.environ.get("CUPY_TF32", "0") not in {"", "0"}:
        raise InvalidInputError(
            "CUPY_TF32 is set, and float32 products would keep 11 bits only: unset it before folding on 'cupy'"
        )
    namespace = array_api_compat.array_namespace(cupy.empty(0))
    return ArrayLibrary("cupy:cuda", namespace, cupy.asarray, cupy.asnumpy, _add_product)


def _cupy_fold(state: FoldState, _workspace: Workspace, _executor: Executor | None, precision: Precision) -> ArrayFold:
    return ArrayFold(state, precision, cupy_library())


def _add_product(target: Any, left: Any, right: Any) -> None:
    """Add `left.T @ right` to a contiguous matrix in place, by one call of cuBLAS on columns where they lie.

    `cupy.matmul` would copy both factors, as columns of a matrix are not contiguous, and make the product beside the
    target: 4.5 times as long at 25,088 features. cuBLAS counts columns first: what is C-ordered here is transposed
    there, so it is asked for target.T += right.T @ left.
    """
    import cupy
    from cupy_backends.cuda.libs import cublas

    gemm = {"d": cublas.dgemm, "f": cublas.sgemm}[target.dtype.char]
    one = np.ones(1, target.dtype)
    (h, w), size = target.shape, target.itemsize
    gemm(
        cupy.cuda.get_cublas_handle(),
        cublas.CUBLAS_OP_N,
        cublas.CUBLAS_OP_T,
        w,
        h,
        left.shape[0],
        one.ctypes.data,
        right.data.ptr,
        right.strides[0] // size,
        left.data.ptr,
        left.strides[0] // size,
        one.ctypes.data,
        target.data.ptr,
        w,
    )


def _staged(rows: NDArray[Any]) -> Any:
    """Send rows to the device by way of page-locked memory, from which they are copied while the device works."""
    import cupy
    import cupyx

    locked = cupyx.empty_pinned(rows.shape, rows.dtype)
    np.copyto(locked, rows)
    on_device = cupy.empty(rows.shape, rows.dtype)
    on_device.set(locked)
    cupy.cuda.get_current_stream().synchronize()  # the locked memory is given back on return
    return on_device
