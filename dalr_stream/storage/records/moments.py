"""Moments on disk: those of the training and held-out rows, and of each shard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage import schema
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.draft import Draft, new_record
from dalr_stream.storage.records.record import (
    Name,
    Provenance,
    attributes,
    fill,
    holding,
    load_record,
    shape_of_array,
)
from dalr_stream.storage.schema import require_count

SCATTER = next(spec for spec in schema.MOMENTS if spec.name == "scatter")
VECTORS = tuple(spec for spec in schema.MOMENTS if spec is not SCATTER)
"""What of a record is read without its matrix."""


def moments_path(root: Place, domain: str, layer: str, part: str) -> Place:
    """Return the folder of one moment record; `part` is `training`, `heldout`, or one of `shard_parts`."""
    return root / "moments" / domain / layer / part


def shard_parts(shards: int) -> list[str]:
    """Return the names of the records that a capture's training samples were split into; none unless `shards` > 1."""
    return [f"shard-{number}" for number in range(shards)] if shards > 1 else []


def shard_path(root: Place, domain: str, shard: str, layer: str, part: str) -> Place:
    """Return the folder of one moment record that a merged domain was made from."""
    return root / "shards" / domain / shard / layer / part


def branches_path(root: Place, domain: str) -> Place:
    """Return the folder of the sums of some of a merged domain's shards."""
    return root / "sums" / domain


def branch_name(beginning: str) -> str:
    """Return the folder of the sum of the shards whose names begin so."""
    return f"@{beginning}"


def branch_path(root: Place, domain: str, beginning: str, layer: str, part: str) -> Place:
    """Return the folder of one moment record of that sum."""
    return branches_path(root, domain) / branch_name(beginning) / layer / part


def save_moments(path: Place, moments: Moments, provenance: Provenance) -> None:
    """Write one moment record, replacing the one that was there; one of no rows has no scatter on disk."""
    with new_record(path) as draft:
        fill_moments(draft, moments, provenance, name_of_moments(path))


def fill_moments(draft: Draft, moments: Moments, provenance: Provenance, name: Name) -> None:
    """Write what a moment record holds."""
    arrays = {spec.name: getattr(moments, spec.name) for spec in schema.MOMENTS if moments.count or spec.name == "mean"}
    values = {"count": moments.count, "samples": moments.samples}
    fill(draft, schema.MOMENTS, arrays, values, provenance, name)


def name_of_moments(path: Place) -> Name:
    """Return the name that a moment record carries: domain or shard, layer and part."""
    return path.parts[-3:]


def load_moments(path: Place) -> Moments:
    """Read one moment record; raises StoreNotFoundError and StoreDamagedError."""
    arrays, values = load_record(path, schema.MOMENTS)
    with holding(path, "moments"):
        count, samples = (require_count(values[name]) for name in ("count", "samples"))
        return Moments(count, samples, **arrays) if count else Moments.empty(arrays["mean"].size)


def moments_count(path: Place) -> int:
    """Return the rows behind one moment record, without reading its arrays."""
    with holding(path, "moments"):
        return require_count(attributes(path)["count"])


def features_of_moments(path: Place) -> int:
    """Return the features of one moment record, from its mean's metadata; StoreNotFoundError, StoreDamagedError."""
    shape = shape_of_array(path, "mean")
    return shape[0] if len(shape) == 1 else 0


def load_mean(path: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a moment record's mean, and its largest |x| with 0 where that is unknown, without reading the scatter."""
    arrays, _ = load_record(path, [spec for spec in schema.MOMENTS if spec.name in {"mean", "max_abs"}])
    mean = arrays["mean"]
    return mean, np.nan_to_num(arrays.get("max_abs", np.zeros_like(mean)))
