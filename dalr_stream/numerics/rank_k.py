"""C += Y'Y: the product nearly all the time of an accumulation goes into.

Only the lower triangle of C is updated, in place, in float64, by BLAS routines that scipy exports and that ctypes
calls without holding the interpreter lock: `numpy.dot` needs a second d x d array, and scipy's own wrappers hold
the lock. Wide matrices are cut into square blocks whose borders depend on d alone; each block is one BLAS call
meant to run on one BLAS thread (see `one_blas_thread`), so the bits do not depend on how many threads, workers or
machines share the blocks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas
from threadpoolctl import threadpool_limits

BLOCK_COLUMNS = 1024
"""Width of a block: large enough for full BLAS speed, small enough that two cores share a 2048 wide matrix."""

_int_p = ctypes.POINTER(ctypes.c_int)
_double_p = ctypes.POINTER(ctypes.c_double)


def _blas(name: str, arguments: list[Any]) -> Callable[..., None]:
    """Return a BLAS routine from the table scipy exports for Cython, as a function that releases the lock."""
    capsule = cython_blas.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return cast("Callable[..., None]", ctypes.CFUNCTYPE(None, *arguments)(get_pointer(capsule, get_name(capsule))))


_char = ctypes.c_char_p
_matrix = (ctypes.c_void_p, _int_p)
_dsyrk = _blas("dsyrk", [_char, _char, _int_p, _int_p, _double_p, *_matrix, _double_p, *_matrix])
_dgemm = _blas("dgemm", [_char, _char, _int_p, _int_p, _int_p, _double_p, *_matrix, *_matrix, _double_p, *_matrix])


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold the BLAS libraries of this process at one thread: 1 and 2 threads give other bits at odd widths."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def add_rank_k(scatter: NDArray[np.float64], rows: NDArray[np.float64], executor: Executor | None = None) -> None:
    """Add `rows.T @ rows`, or its last rows, to the lower triangle of `scatter`, in place.

    Parameters
    ----------
    scatter
        (h, d) float64, C order, h <= d: rows d - h to d of a d x d matrix, where d - h is a multiple of
        `BLOCK_COLUMNS`. Its upper triangle is neither read nor written outside the diagonal blocks' own.
    rows
        (n, d) float64, C order.
    executor
        Runs the blocks of a matrix wider than `BLOCK_COLUMNS` at the same time; the bits are the same without.

    A strip has the same bits as those rows of the whole. Cost: n d^2 multiply-adds for the whole matrix, no memory
    beyond the arguments.
    """
    n, d = rows.shape
    first = d - scatter.shape[0]
    if scatter.shape[1] != d or first < 0 or first % BLOCK_COLUMNS:
        raise ValueError(
            f"scatter must be the last rows of {d} x {d}, from a multiple of {BLOCK_COLUMNS}, got {scatter.shape}"
        )
    for array in (scatter, rows):
        if array.dtype != np.float64 or not array.flags.c_contiguous:
            raise ValueError("scatter and rows must be float64 arrays in C order")
    if n == 0:
        return
    blocks = [(i, j) for i in range(first, d, BLOCK_COLUMNS) for j in range(0, i + 1, BLOCK_COLUMNS)]
    if executor is None or len(blocks) == 1:
        for i, j in blocks:
            _add_block(scatter, rows, i, j)
    else:
        for done in [executor.submit(_add_block, scatter, rows, i, j) for i, j in blocks]:
            done.result()


def mirror_lower(matrix: NDArray[np.float64]) -> None:
    """Copy the lower triangle onto the upper one, in place, a block at a time."""
    d = matrix.shape[0]
    for i in range(0, d, BLOCK_COLUMNS):
        rows = slice(i, i + BLOCK_COLUMNS)
        matrix[:i, rows] = matrix[rows, :i].T
        lower = np.tril(matrix[rows, rows])
        matrix[rows, rows] = lower + np.tril(lower, -1).T


def _add_block(scatter: NDArray[np.float64], rows: NDArray[np.float64], i: int, j: int) -> None:
    """Update block (i, j) of the lower triangle.

    BLAS counts columns first: C-ordered rows (n, d) are a d x n matrix to it, and block (i, j) of a C-ordered
    scatter is its block (j, i), so the lower triangle here is its upper one.
    """
    n, d = rows.shape
    height, width = min(BLOCK_COLUMNS, d - i), min(BLOCK_COLUMNS, d - j)
    one, size = ctypes.c_double(1.0), scatter.itemsize
    lead, depth = ctypes.c_int(d), ctypes.c_int(n)
    left, right = rows.ctypes.data + j * size, rows.ctypes.data + i * size
    target = scatter.ctypes.data + ((i - d + scatter.shape[0]) * d + j) * size
    if i == j:
        _dsyrk(b"U", b"N", ctypes.c_int(width), depth, one, left, lead, one, target, lead)
    else:
        order = ctypes.c_int(width), ctypes.c_int(height), depth
        _dgemm(b"N", b"T", *order, one, left, lead, right, lead, one, target, lead)
