"""Every array on disk, declared once: its name, dimensions, dtype and meaning.

`SCHEMA_VERSION` changes whenever a reader of the old files would misread the new ones; a store of another version is
refused by name. Symbols: n rows, d inputs, m outputs, K the largest rank, r the numerical rank of a selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

SCHEMA_VERSION = 2
MAX_CHUNK_BYTES = 32 * 2**20
DECODE_ERRORS = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, OSError,
)  # fmt: skip
"""What zarr has been seen to raise, or may, where bits of a chunk or of an array's metadata were flipped."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a record."""

    name: str
    dimensions: tuple[str, ...]
    dtype: str
    meaning: str


WEIGHTS = (
    ArraySpec("weight", ("output", "input"), "float32 or float64", "W, as the network holds it"),
    ArraySpec("bias", ("output",), "float32 or float64", "b; zeros where the layer has none"),
)
MOMENTS = (
    ArraySpec("mean", ("feature",), "float64", "mean of the rows"),
    ArraySpec("scatter", ("feature", "feature_2"), "float64", "sum of (x - mean)(x - mean)', symmetric"),
    ArraySpec("max_abs", ("feature",), "float64", "largest |x|; NaN where unknown"),
    ArraySpec("maximum", ("feature",), "float64", "largest x; NaN where unknown"),
    ArraySpec("nonzero", ("feature",), "int64", "rows in which the feature is not zero"),
)
FOLD_VECTORS = ArraySpec(
    "vectors", ("lane", "vector", "feature"), "float64", "mean, maximum, minimum and count of non-zeros so far"
)
FOLD_SCATTER = ArraySpec("scatter", ("row", "feature"), "float64", "lower triangle of the scatter, or its last rows")
PENDING = (
    ArraySpec("pending", ("row", "feature"), "that of the activations", "rows that fill no tile yet"),
    ArraySpec("pending_sample", ("row",), "int64", "the sample each of them came from"),
)
LOW_RANK = (
    ArraySpec("basis", ("output", "rank"), "float64", "orthonormal columns U; up at rank k is its first k columns"),
    ArraySpec("down", ("rank", "input"), "float64", "U'M; down at rank k is its first k rows"),
    ArraySpec("center", ("input",), "float64", "point about which the inputs are centred; zeros for raw factors"),
    ArraySpec("offset", ("output",), "float64", "bias at rank k is offset - up (down center)"),
    ArraySpec("objective", ("rank_0",), "float64", "the method's own objective at rank 0..K"),
)
SELECTION = (
    ArraySpec("order", ("position",), "int64", "nodes in the order they are taken"),
    ArraySpec("factor", ("feature", "step"), "float64", "pivoted Cholesky columns of Sigma; absent for pure pruning"),
    ArraySpec("retention", ("position",), "float64", "information retention r(J) at each size"),
    ArraySpec("center", ("feature",), "float64", "mean for the affine form, else zeros"),
    ArraySpec("not_live", ("dead",), "int64", "nodes not live on the target, taken last"),
)


def create_array(
    group: zarr.Group,
    name: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    *,
    dimensions: Sequence[str],
    chunk_rows: int | None = None,
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Make an array whose chunks span full rows, compressed with zstd level 1 and checked by its checksum.

    Floats that were never written read as NaN, so a lost chunk is loud.
    """
    if chunk_rows is None:
        row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
        chunk_rows = max(1, min(max(shape[0], 1), MAX_CHUNK_BYTES // row_bytes))
    return group.create_array(
        name,
        shape=tuple(shape),
        dtype=dtype,
        chunks=(chunk_rows, *(max(1, length) for length in shape[1:])),
        compressors=ZstdCodec(level=1, checksum=True),
        fill_value=np.nan if dtype.kind == "f" else -1,
        dimension_names=tuple(dimensions),
        attributes=attributes,
        overwrite=True,
    )


def write_array(group: zarr.Group, spec: ArraySpec, values: NDArray[Any]) -> None:
    """Write one whole array of a record."""
    array = create_array(
        group, spec.name, values.shape, values.dtype, dimensions=spec.dimensions, attributes={"meaning": spec.meaning}
    )
    rows = array.chunks[0]
    for first in range(0, values.shape[0] if values.size else 0, rows):  # all at once would hold many chunks twice
        array[first : first + rows] = values[first : first + rows]
