"""C += Y'Y: the product that takes nearly all the time of an accumulation.

Only the lower triangle of C is updated, in place, in float64, by BLAS routines that scipy exports and that ctypes
calls without holding the interpreter lock: `numpy.dot` needs a second d x d array, and scipy's own wrappers hold
the lock. Wide matrices are cut into blocks whose borders depend on d alone, squares on the diagonal and flat ones
left of it; each is one BLAS call meant to run on one BLAS thread (see `one_blas_thread`), so the bits do not depend
on how many threads, workers or machines share the blocks. Products of float32 rows are float32, a block at a time,
and are added to C in float64.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas
from threadpoolctl import ThreadpoolController, threadpool_info

from dalr_stream.numerics.linalg.precision import ScaledRows

BLOCK_COLUMNS = 1024
"""Width of a block: large enough for full BLAS speed, small enough that two cores share a 2048 wide matrix."""
_FLAT = 512, 2048
"""Rows and columns of a block left of the diagonal: the area of a square, and 83 Gflop/s a core where that has 79."""
SINGLE_BLOCK_BYTES = 4 * BLOCK_COLUMNS**2
"""Memory that float32 products of one block take until they are added to the float64 sums."""
_ROWS_IN_CACHE = 64
_SQUARE = 128


def _blas(name: str, arguments: list[Any]) -> Callable[..., None]:
    """Return a BLAS routine from the table scipy exports for Cython, as a function that releases the lock."""
    capsule = cython_blas.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return cast("Callable[..., None]", ctypes.CFUNCTYPE(None, *arguments)(get_pointer(capsule, get_name(capsule))))


def _routines(letter: str, real: type[ctypes.c_double | ctypes.c_float]) -> tuple[Any, Any, Any]:
    """Return syrk and gemm of one precision, and the type of their scalars."""
    char, integer, scalar = ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(real)
    matrix = (ctypes.c_void_p, integer)
    syrk = _blas(f"{letter}syrk", [char, char, integer, integer, scalar, *matrix, scalar, *matrix])
    gemm = _blas(f"{letter}gemm", [char, char, integer, integer, integer, scalar, *matrix, *matrix, scalar, *matrix])
    return syrk, gemm, real


_ROUTINES = {
    np.dtype(np.float64): _routines("d", ctypes.c_double),
    np.dtype(np.float32): _routines("s", ctypes.c_float),
}


@cache
def blas_build() -> str:
    """Return the BLAS that takes the products, its version and the kernel it chose for this CPU: other ones round so.

    The kernel is OpenBLAS's own choice, which `OPENBLAS_CORETYPE` in the environment overrules.
    """
    builds = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = [library for library in builds if "scipy" in Path(library["filepath"]).parent.name] or builds
    names = {
        " ".join(str(library[key]) for key in ("internal_api", "version", "architecture") if library.get(key))
        for library in own
    }
    return ", ".join(sorted(names)) or "unknown"


def usable_cores() -> int:
    """Return how many cores this process may use; those of the machine where the system tells no more, as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _OneThread:
    """Who holds BLAS at one thread: the first to enter saves how many there were, the last to leave restores it.

    One number for the process, as BLAS has. Each that saved and restored for itself would, where two overlap, let the
    other one run on several threads, and leave BLAS at one for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, int]] = []
        self._libraries: list[Any] = []
        self._modules = 0

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [(library, library.num_threads) for library in self._loaded()]
            self._inside += 1
            for library, _ in self._before:  # every time: where BLAS runs on OpenMP, a thread has a number of its own
                _set_threads(library, 1)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            for library, number in self._before if self._inside == 0 else ():
                _set_threads(library, number)

    def _loaded(self) -> list[Any]:
        """Return the BLAS libraries of this process, looked for again where a module was imported since.

        A tile of few features takes less time to fold than all libraries take to look through.
        """
        if self._modules != len(sys.modules):
            self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
            self._modules = len(sys.modules)
        return self._libraries


def _set_threads(library: Any, number: int) -> None:
    """Set it whichever thread did before: threadpoolctl 3.8 leaves it to the first one, and ignores the others."""
    owned = hasattr(library, "clear_controlling_thread")
    if owned:
        library.clear_controlling_thread(force=True)
    library.set_num_threads(number)
    if owned:
        library.clear_controlling_thread(force=True)


_ONE_THREAD = _OneThread()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold the BLAS libraries of this process at one thread: 1 and 2 threads give other bits at odd widths.

    Blocks may overlap in several threads, and lie in one another.
    """
    _ONE_THREAD.enter()
    try:
        yield
    finally:
        _ONE_THREAD.leave()


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
    _require(scatter, rows, np.dtype(np.float64))
    _each_block(partial(_add_block, scatter, rows), scatter, executor)


def add_rank_k_single(scatter: NDArray[np.float64], scaled: ScaledRows, executor: Executor | None = None) -> None:
    """Do what `add_rank_k` does with float32 products of scaled rows; `precision` states the error.

    Measured on one core of an AVX-512 machine: 0.6 of the time of float64 at 2048 rows, the same at 256 rows, where
    adding a block to its sums costs as much as was won. Memory: `SINGLE_BLOCK_BYTES` a thread.
    """
    _require(scatter, scaled.rows, np.dtype(np.float32))
    _each_block(partial(_add_single_block, scatter, scaled), scatter, executor)


def add_rank_one(
    scatter: NDArray[np.float64], factor: float, left: NDArray[np.float64], right: NDArray[np.float64]
) -> None:
    """Add `factor` left right' to `scatter` (h, d), in place, a few rows at a time: nothing of its size is made."""
    for first in range(0, len(scatter), _ROWS_IN_CACHE):
        rows = slice(first, first + _ROWS_IN_CACHE)
        term = np.multiply.outer(left[rows], right)
        term *= factor
        scatter[rows] += term


def mirror_lower(matrix: NDArray[np.float64]) -> None:
    """Copy the lower triangle onto the upper one, in place, in squares that stay in cache (a quarter of the time)."""
    d = matrix.shape[0]
    for i in range(0, d, _SQUARE):
        rows = slice(i, i + _SQUARE)
        for j in range(0, i, _SQUARE):
            columns = slice(j, j + _SQUARE)
            matrix[columns, rows] = matrix[rows, columns].T
        lower = np.tril(matrix[rows, rows])
        matrix[rows, rows] = lower + np.tril(lower, -1).T


def _require(scatter: NDArray[np.float64], rows: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Raise ValueError for memory that BLAS would misread."""
    h, d = scatter.shape
    first = d - h
    if rows.shape[1] != d or first < 0 or first % BLOCK_COLUMNS:
        raise ValueError(
            f"scatter must be the last rows of {rows.shape[1]} x {rows.shape[1]}, from a multiple of {BLOCK_COLUMNS}, "
            f"got {scatter.shape}"
        )
    for array, wanted in ((scatter, np.dtype(np.float64)), (rows, dtype)):
        if array.dtype != wanted or not array.flags.c_contiguous:
            raise ValueError(f"scatter must be float64 and rows {dtype}, both in C order")


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows `top` to `bottom` and columns `left` to `right` of a whole matrix; on its diagonal the lower triangle."""

    top: int
    bottom: int
    left: int
    right: int


def _blocks(first: int, stop: int) -> Iterator[_Block]:
    """Cover the lower triangle of rows `first` to `stop`."""
    squares = [(i, min(i + BLOCK_COLUMNS, stop)) for i in range(first, stop, BLOCK_COLUMNS)]
    height, width = _FLAT
    for i, end in squares:
        for top in range(i, end, height):
            for left in range(0, i, width):
                yield _Block(top, min(top + height, end), left, min(left + width, i))
    for i, end in squares:  # half the work of the others: last, so that all threads end together
        yield _Block(i, end, i, end)


def _each_block(add: Callable[[_Block], None], scatter: NDArray[np.float64], executor: Executor | None) -> None:
    """Call `add` for each block of the lower triangle, at the same time where there is an executor."""
    h, d = scatter.shape
    blocks = list(_blocks(d - h, d))
    if executor is None or len(blocks) == 1:
        for block in blocks:
            add(block)
    else:
        for done in [executor.submit(add, block) for block in blocks]:
            done.result()


def _add_block(scatter: NDArray[np.float64], rows: NDArray[np.float64], block: _Block) -> None:
    _add_product(_view(scatter, block), rows, block)


def _add_single_block(scatter: NDArray[np.float64], scaled: ScaledRows, block: _Block) -> None:
    sums = _view(scatter, block)
    product = np.zeros(sums.shape, np.float32)
    _add_product(product, scaled.rows, block)
    for first in range(0, len(sums), _ROWS_IN_CACHE):
        stop = min(first + _ROWS_IN_CACHE, len(sums))
        wide = product[first:stop] * scaled.scale[block.top + first : block.top + stop, None]
        wide *= scaled.scale[block.left : block.right]
        sums[first:stop] += wide


def _view(scatter: NDArray[np.float64], block: _Block) -> NDArray[np.float64]:
    """View a block of the whole matrix, of which `scatter` holds the last rows."""
    first = scatter.shape[1] - scatter.shape[0]
    return scatter[block.top - first : block.bottom - first, block.left : block.right]


def _add_product(target: NDArray[Any], rows: NDArray[Any], block: _Block) -> None:
    """Add rows[:, top:bottom].T @ rows[:, left:right] to a target of that shape; its lower triangle on the diagonal.

    BLAS counts columns first: C-ordered rows (n, d) are a d x n matrix to it, and block (i, j) of a C-ordered
    scatter is its block (j, i), so the lower triangle here is its upper one.
    """
    n, d = rows.shape
    if n == 0:
        return
    height, width = target.shape
    syrk, gemm, real = _ROUTINES[rows.dtype]
    one, size = real(1.0), rows.itemsize
    lead, depth, stride = ctypes.c_int(d), ctypes.c_int(n), ctypes.c_int(target.strides[0] // size)
    left, right = rows.ctypes.data + block.left * size, rows.ctypes.data + block.top * size
    if block.top == block.left:
        syrk(b"U", b"N", ctypes.c_int(width), depth, one, left, lead, one, target.ctypes.data, stride)
    else:
        order = ctypes.c_int(width), ctypes.c_int(height), depth
        gemm(b"N", b"T", *order, one, left, lead, right, lead, one, target.ctypes.data, stride)
