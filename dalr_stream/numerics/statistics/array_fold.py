"""The device fold: rows become sums wherever an array library keeps them, on a CUDA device or in this process.

One fold, written against the Python array API standard, which numpy, torch and CuPy follow by way of array-api-compat.
The arithmetic is the reference fold's (`folding.CpuFold`): each tile is centred in float64, the row that joins it to
what came before rides along, and the lower triangle is updated in place, a block of rows at a time. The moments are
those of the reference to 1e-12 of sqrt(S_ii S_jj) in double precision, though not its bits, so the record names the
library. The same rows give the same bits on the same device and build.

A tile costs one wait for the device, to learn whether its rows are finite; nothing else is read back before `state`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import NonFiniteError
from dalr_stream.numerics.linalg.precision import LARGEST_EXPONENT, Precision
from dalr_stream.numerics.statistics.centring import Chosen, describe_non_finite
from dalr_stream.numerics.statistics.folding import FoldState
from dalr_stream.numerics.statistics.moments import pooled_mean

BLOCK_ROWS = 1024
"""Rows of the scatter matrix updated by one product: a wide matrix costs little more than its lower triangle."""


def add_product(target: Any, left: Any, right: Any) -> None:
    """Add `left.T @ right` to `target` in place, by a matrix that is made in between."""
    target += left.T @ right


@dataclass(frozen=True, slots=True)
class ArrayLibrary:
    """What the fold needs to know of numpy, torch or CuPy beyond the array API standard."""

    name: str
    """Written into the record, as another library rounds in its own way: `torch:cuda`."""
    xp: Any
    """The library's namespace, from array-api-compat."""
    to_device: Callable[[Any], Any]
    """Brings rows, of this library or of numpy, to the device, in the precision they have."""
    to_host: Callable[[Any], NDArray[Any]]
    """Copies an array of the library to this process's memory, half precision losslessly wider."""
    add_product: Callable[[Any, Any, Any], None] = add_product
    """Adds `left.T @ right` to a contiguous matrix in place; libraries that can, without a matrix in between."""
    full_precision: Callable[[], AbstractContextManager[None]] = nullcontext
    """Keeps TF32 and its like out of float32 products inside the block."""


class ArrayFold:
    """A Fold on one device. Memory there: d^2 / 2 doubles and one tile in float64.

    In single precision also the tile in float32 and the products of `BLOCK_ROWS` rows, 12 KiB a feature.
    """

    def __init__(self, state: FoldState, precision: Precision, library: ArrayLibrary) -> None:
        """Go on from `state`, which is copied to the device."""
        self._library = library
        self._precision = precision
        self._count, self._samples = state.count, state.samples
        self._shape = state.scatter.shape
        put = library.to_device
        self._mean, self._maximum, self._minimum = put(state.mean), put(state.maximum), put(state.minimum)
        self._nonzero = put(state.nonzero)
        self._blocks = [self._block(state, own, right) for own, _, right in self._cut()]

    def update(self, rows: Any, samples: int, chosen: Chosen | None = None) -> None:
        """Fold rows (n, d), of the library or of numpy, or the `chosen` of them; nothing is folded at NaN or Inf.

        They are chosen by number: a mask would have to be waited for, to learn how many they are.
        """
        n = int(rows.shape[0]) if chosen is None else chosen.size
        if n == 0:
            return
        library, xp = self._library, self._library.xp
        rows = library.to_device(rows)[:, : self._shape[1]]
        if chosen is not None and n < rows.shape[0]:
            rows = xp.take(rows, library.to_device(chosen), axis=0)
        with np.errstate(invalid="ignore", over="ignore"):  # numpy would warn of what is refused in a moment
            mean, centred = _centre(rows, xp)
        if not bool(xp.all(xp.isfinite(mean))):
            raise NonFiniteError(f"activations must be finite, got {describe_non_finite(library.to_host(rows))}")
        centred[n] = math.sqrt(self._count * n / (self._count + n)) * (mean - self._mean)
        self._add_products(centred)
        self._mean = pooled_mean(self._count, self._mean, n, mean) if self._count else mean
        self._count += n
        self._samples += samples
        self._maximum = xp.maximum(self._maximum, xp.astype(xp.max(rows, axis=0), xp.float64))
        self._minimum = xp.minimum(self._minimum, xp.astype(xp.min(rows, axis=0), xp.float64))
        self._nonzero += xp.sum(rows != 0, axis=0, dtype=xp.int64)

    def state(self) -> FoldState:
        """Return what is summed up so far, in this process's memory."""
        get = self._library.to_host
        scatter = np.zeros(self._shape)
        for block, (own, _, right) in zip(self._blocks, self._cut(), strict=True):
            scatter[own, right] = get(block)
        vectors = (get(self._maximum), get(self._minimum), get(self._nonzero))
        return FoldState(self._count, self._samples, get(self._mean).copy(), scatter, *(v.copy() for v in vectors))

    def _block(self, state: FoldState, own: slice, right: slice) -> Any:
        """Rows of the lower triangle on the device; where nothing is summed up yet, none cross over to it."""
        if state.count == 0:
            shape = (own.stop - own.start, right.stop)
            return self._library.xp.zeros(shape, dtype=self._library.xp.float64, device=self._mean.device)
        return self._library.to_device(np.ascontiguousarray(state.scatter[own, right]))

    def _cut(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield the rows of each block within the last h of the scatter, the same within the whole, and its columns."""
        h, d = self._shape
        first = d - h
        for start in range(first, d, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, d)
            yield slice(start - first, stop - first), slice(start, stop), slice(0, stop)

    def _add_products(self, centred: Any) -> None:
        library = self._library
        if self._precision is Precision.DOUBLE:
            for block, (_, left, right) in zip(self._blocks, self._cut(), strict=True):
                library.add_product(block, centred[:, left], centred[:, right])
            return
        xp = library.xp
        scale = _units(centred, xp)
        centred /= scale
        narrow = xp.astype(centred, xp.float32)
        with library.full_precision():
            for number, (_, left, right) in enumerate(self._cut()):
                products = xp.zeros_like(self._blocks[number], dtype=xp.float32)
                library.add_product(products, narrow[:, left], narrow[:, right])
                wide = products * scale[left][:, None]
                wide *= scale[right]
                self._blocks[number] += wide


def _centre(rows: Any, xp: Any) -> tuple[Any, Any]:
    """Return the mean (d,) and the rows less their mean, in float64, with one more row to be filled.

    As in `moments.centre` the first row is taken off before the mean is taken, so constant features stay exactly zero.
    """
    n, d = rows.shape
    centred = xp.empty((n + 1, d), dtype=xp.float64, device=rows.device)
    body = centred[:n]
    body[...] = rows
    origin = xp.astype(rows[0], xp.float64)
    body -= origin
    offset = xp.mean(body, axis=0)
    body -= offset
    return origin + offset, centred


def _units(centred: Any, xp: Any) -> Any:
    """(d,): powers of two that bring each feature's largest value near 1; see `numerics.precision`."""
    largest = xp.maximum(xp.max(centred, axis=0), -xp.min(centred, axis=0))
    safe = xp.where(largest > 0.0, largest, xp.ones_like(largest))
    bound = xp.full_like(safe, float(LARGEST_EXPONENT))
    exponents = xp.minimum(xp.maximum(xp.ceil(xp.log2(safe)), -bound), bound)  # CuPy's clip would wait for the device
    return xp.exp2(exponents) if hasattr(xp, "exp2") else 2.0**exponents
