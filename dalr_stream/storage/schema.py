"""Every array on disk, declared once: its name, dimensions, dtype and meaning.

`SCHEMA_VERSION` changes whenever a reader of the old files would misread the new ones; a store of another version is
refused by name. Symbols: n rows, d inputs, m outputs, K the largest rank, r the numerical rank of a selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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


LAYER = "<layer>"
"""Stands for a layer's name: all layers of a domain lie in one group, so their arrays and dimensions go by it."""
ROWS = ArraySpec(
    LAYER,
    (f"{LAYER}.row", f"{LAYER}.feature"),
    "float32 or float64; half precision as float32",
    "the rows, one tile per chunk",
)
SAMPLES = ArraySpec(
    f"{LAYER}@sample", (f"{LAYER}.row",), "int64", "the sample of each row, where samples give unequal numbers of rows"
)
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
TENSOR = ArraySpec("<number>", ("byte",), "int8", "a tensor's bytes, row after row; shape and type are a value")
STATE = ArraySpec("<number>", ("byte",), "int8", "a tensor's bytes as they lie in memory; shape and type are a value")
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

HEADS = (
    ArraySpec(
        "score_up", ("group", "dimension", "rank"), "float64", "what queries are projected by; rank r: r columns"
    ),
    ArraySpec("score_down", ("group", "rank", "dimension"), "float64", "what keys are projected by; rank r: r rows"),
    ArraySpec("score_losses", ("group", "rank_0"), "float64", "what is lost of the scores at rank 0..p"),
    ArraySpec("mixed_up", ("group", "dimension", "rank"), "float64", "what restores a head of what the output reads"),
    ArraySpec("mixed_down", ("group", "rank", "dimension"), "float64", "what values are projected by"),
    ArraySpec(
        "mixed_losses", ("group", "rank_0"), "float64", "what is lost of the outputs at rank 0..p, each head alone"
    ),
    ArraySpec("outputs_moment", ("feature", "feature_2"), "float64", "of what the output layer reads"),
    ArraySpec("mean", ("feature",), "float64", "its mean for the affine form, else zeros"),
)
ROTARY = (
    ArraySpec("pair_order", ("pair",), "int64", "rotary pairs of queries and keys; the first of them are kept"),
    ArraySpec("pair_losses", ("pairs_0",), "float64", "what is lost of the scores where the first 0..R/2 are kept"),
)
"""Of heads into which positions are rotated; `score_` is of their other dimensions then, and absent without any."""


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """One kind of record: where it lies, what it holds, which verb writes it."""

    path: str
    meaning: str
    by: str
    arrays: tuple[ArraySpec, ...]
    values: Mapping[str, str] = field(default_factory=dict)
    """Plain values among its attributes, beside those that every record has."""


SEALS = {
    "digests": "CRC-32 of each array's bytes, uncompressed and in C order",
    "provenance": "what it was made from: digests of network and rows, the rule of folding, settings of the solver",
    "name": "the last folders of its path: a record that was moved over another is damage",
    "digest": "SHA-256 of this `zarr.json` without this value",
}
"""Among the attributes of every record; every other `zarr.json` has `digest` alone, or beside an array's `meaning`."""
_COUNTS = {"count": "rows", "samples": "samples that these rows came from"}
_SOLUTION = {"method": "its name", "diagnostics": "how it was solved: ridge, route, condition, error, and so on"}
_LANES = tuple(
    ArraySpec(f"{part}_{spec.name}{number}", spec.dimensions, spec.dtype, spec.meaning)
    for part in PARTS
    for spec, number in ((FOLD_VECTORS, ""), (FOLD_SCATTER, "_<lane>"))
)
RECORDS = (
    RecordSpec("activations/<domain>", "the rows themselves; may be deleted to save disk", "capture", (ROWS, SAMPLES)),
    RecordSpec("weights/<layer>", "the layer itself: solving needs no network", "capture, accumulate", WEIGHTS),
    RecordSpec(
        "moments/<domain>/<layer>/<part>",
        "moments of the training rows (`training`), the held-out rows (`heldout`), or one shard of the training rows "
        "(`shard-<n>`)",
        "accumulate, merge",
        MOMENTS,
        _COUNTS,
    ),
    RecordSpec(
        "shards/<domain>/<shard>/<layer>/<part>", "what merged moments are the sum of", "merge", MOMENTS, _COUNTS
    ),
    RecordSpec(
        "sums/<domain>/@<beginning>/<layer>/<part>",
        "sums of the shards whose names begin alike, where there are many",
        "merge",
        MOMENTS,
        _COUNTS,
    ),
    RecordSpec("solutions/<layer>/<method>", "factors of every rank", "solve", LOW_RANK, _SOLUTION),
    RecordSpec("solutions/<layer>/<method>", "a selection of every size", "solve", SELECTION, _SOLUTION),
    RecordSpec(
        "solutions/<layer>/<method>",
        "heads of every size, under the output layer of their attention",
        "solve",
        (*HEADS, *ROTARY),
        {**_SOLUTION, "layout": "layers and heads of the attention", "ridge": "of the restoration, relative"},
    ),
    RecordSpec(
        "unfinished/<domain>/<layer>/<lane>",
        "a checkpoint: gone once the moments are kept. A direct run has `@direct-<group>` in place of layer and lane; "
        "one of ranks that share the sums has a record for each block of 1,024 rows of each sum",
        "accumulate",
        (*_LANES, *PENDING),
        {"values": "batch or tile that comes next", "counts": "rows and samples of each lane, by part"},
    ),
    RecordSpec(
        "unfinished/<domain>/@stream-<pass>/<sample>",
        "where a network that runs block by block stands on the batch that begins with a sample: what the blocks so "
        "far gave; gone once the block after them is done",
        "accumulate",
        (STATE,),
        {"given": "what each call gave, with numbers in place of tensors"},
    ),
    RecordSpec(
        "blocks/block-<number>/network",
        "a block that was compressed layer after layer, block by block",
        "compress_sequentially",
        (TENSOR,),
        {"tensors": "by name: the number of its array, type, shape and SHA-256"},
    ),
)
"""Every kind of record there may be in a store."""
