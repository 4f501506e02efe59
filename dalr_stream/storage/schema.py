"""Every array on disk, declared once: its name, dimensions, dtype and meaning.

`SCHEMA_VERSION` changes whenever a reader of the old files would misread the new ones; a store of another version is
refused by name. Symbols: n rows, d inputs, m outputs, K the largest rank, r the numerical rank of a selection.
"""

from __future__ import annotations

from dataclasses import dataclass

from dalr_stream.errors import InvalidInputError

SCHEMA_VERSION = 4
READABLE = (3, SCHEMA_VERSION)
"""Schema 3 had an object a batch in the manifest, see `batches`; the first write brings a store to this one."""
TRAINING, HELDOUT = PARTS = "training", "heldout"
"""The two records of a layer's moments: of the training rows, and of the held-out rows that measure the error."""
MAX_CHUNK_BYTES = 32 * 2**20
MAX_FEATURES = 2**24
"""More is damage: moments of so many features would be 2 PiB."""
DECODE_ERRORS = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, OSError,
)  # fmt: skip
"""What zarr has been seen to raise, or may, where bits of a chunk or of an array's metadata were flipped."""


def require_count(value: object, what: str = "a count", least: int = 0, most: int = 2**63 - 1) -> int:
    """Return a whole number of a record; raises InvalidInputError where it is none, or cannot be."""
    if type(value) is not int or not least <= value <= most:
        raise InvalidInputError(f"{what} must be a whole number of {least}..{most}, got {value!r}")
    return value


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
