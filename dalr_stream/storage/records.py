"""Moments, weights and solutions on disk: whole records, written once, checked when read.

A record is a zarr group whose arrays `schema` declares; its attributes carry the plain values, a digest of every
array, and whatever the caller wants to travel along (`provenance`). It is written under a temporary name and renamed,
so a reader sees a whole record or none. It also carries its own name, the last folders of its path: one that was moved
over another is damage, although its digests agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from dalr_stream.errors import StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors, GroupedFactors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.rows.streams import group_name
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage import schema
from dalr_stream.storage.arrays import write_array
from dalr_stream.storage.durable import TEMPORARY, folder_there, new_folder, readable
from dalr_stream.storage.metadata import read_metadata, write_group
from dalr_stream.storage.schema import ArraySpec, require_count

Arrays = dict[str, NDArray[Any]]
Provenance = Mapping[str, Any]
Name = tuple[str, ...]
Solution = Factors | ChannelSelection
T = TypeVar("T")
_NAME = "name"
_REMEDY = "delete the record's folder and run the step that makes it again"


def moments_path(root: Path, domain: str, layer: str, part: str) -> Path:
    """Return the folder of one moment record; `part` is `training`, `heldout`, or one of `shard_parts`."""
    return root / "moments" / domain / layer / part


def shard_parts(shards: int) -> list[str]:
    """Return the names of the records that a capture's training samples were split into; none unless `shards` > 1."""
    return [f"shard-{number}" for number in range(shards)] if shards > 1 else []


def shard_path(root: Path, domain: str, shard: str, layer: str, part: str) -> Path:
    """Return the folder of one moment record that a merged domain was made from."""
    return root / "shards" / domain / shard / layer / part


def solution_path(root: Path, layer: str, method: Method) -> Path:
    """Return the folder of one solution."""
    return root / "solutions" / layer / method.value


def save_moments(path: Path, moments: Moments, provenance: Provenance) -> None:
    """Write one moment record, replacing the one that was there; one of no rows has no scatter on disk."""
    with new_folder(path) as folder:
        fill_moments(folder, moments, provenance, name_of_moments(path))


def fill_moments(folder: Path, moments: Moments, provenance: Provenance, name: Name) -> None:
    """Write what a moment record holds into a new folder."""
    arrays = {spec.name: getattr(moments, spec.name) for spec in schema.MOMENTS if moments.count or spec.name == "mean"}
    values = {"count": moments.count, "samples": moments.samples}
    _fill(folder, schema.MOMENTS, arrays, values, provenance, name)


def name_of_moments(path: Path) -> Name:
    """Return the name that a moment record carries: domain or shard, layer and part."""
    return path.parts[-3:]


def load_moments(path: Path) -> Moments:
    """Read one moment record; raises StoreNotFoundError and StoreDamagedError."""
    arrays, values = load_record(path, schema.MOMENTS)
    try:
        count, samples = (require_count(values[name]) for name in ("count", "samples"))
        return Moments(count, samples, **arrays) if count else Moments.empty(arrays["mean"].size)
    except (LookupError, TypeError, ValueError) as error:
        raise StoreDamagedError(f"'{path}' holds no moments ({error}); {_REMEDY}") from error


def moments_count(path: Path) -> int:
    """Return the rows behind one moment record, without reading its arrays."""
    try:
        return require_count(_attributes(path)["count"])
    except (LookupError, ValueError) as error:
        raise StoreDamagedError(f"'{path}' holds no moments ({error}); {_REMEDY}") from error


def features_of_moments(path: Path) -> int:
    """Return the features of one moment record, from the head of its mean alone; StoreDamagedError."""
    shape: Sequence[Any] = read_metadata(path / "mean").get("shape", ())
    return shape[0] if len(shape) == 1 and type(shape[0]) is int else 0


def load_mean(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a moment record's mean, and its largest |x| with 0 where that is unknown, without reading the scatter."""
    arrays, _ = load_record(path, [spec for spec in schema.MOMENTS if spec.name in {"mean", "max_abs"}])
    mean = arrays["mean"]
    return mean, np.nan_to_num(arrays.get("max_abs", np.zeros_like(mean)))


def save_layer_weights(
    root: Path, layer: str, weight: NDArray[Any], bias: NDArray[Any] | None, provenance: Provenance
) -> None:
    """Keep a layer's weight (m, d) and bias (m,) in the store, so that solving needs no network."""
    arrays = {"weight": weight, "bias": np.zeros(weight.shape[0], weight.dtype) if bias is None else bias}
    save_record(weights_path(root, layer), schema.WEIGHTS, arrays, {}, provenance, names=1)


def weights_path(root: Path, layer: str) -> Path:
    """Return the folder of a layer's weights."""
    return root / "weights" / layer


def load_layer_weights(root: Path, layer: str, digest: str | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read what `save_layer_weights` wrote; `digest` is the manifest's, compared where it is given."""
    path = weights_path(root, layer)
    arrays, _ = load_record(path, schema.WEIGHTS)
    if not {"weight", "bias"} <= arrays.keys():
        raise StoreDamagedError(f"'{path}' holds no weight and bias; {_REMEDY}")
    weight = arrays["weight"]
    if digest is not None and not is_weight_of(weight, digest):
        raise StoreDamagedError(
            f"'{path}': weight {weight.shape} is not the one of layer '{layer}' that the store was made from: delete "
            "the folder and capture again, which writes it anew"
        )
    return weight, arrays["bias"]


def is_weight_of(weight: NDArray[Any], digest: str) -> bool:
    """Tell whether a weight as it is stored has the digest that the manifest has: of its dtype, shape and bytes.

    Half precision is stored as float32, and its digest is that of the narrow numbers.
    """
    return any(_weight_digest(dtype, array) == digest for dtype, array in _as_in_the_network(weight))


def _as_in_the_network(weight: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield a stored weight in each dtype that it may have had in the network, by torch's name."""
    yield f"torch.{weight.dtype}", weight
    if weight.dtype == np.float32:  # only where nothing is lost: else other weights would pass for these
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        if np.array_equal(half, weight, equal_nan=True):
            yield "torch.float16", half
        bits = np.ascontiguousarray(weight).view(np.uint32)
        if not (bits & 0xFFFF).any():
            yield "torch.bfloat16", (bits >> 16).astype(np.uint16)


def _weight_digest(dtype: str, array: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).data.cast("B"))
    return digest.hexdigest()


def save_solution(root: Path, layer: str, solution: Solution, provenance: Provenance) -> None:
    """Write one solution, every rank of it, replacing the one that was there.

    The weight that low-rank factors approximate is not written again: it is the store's (`save_layer_weights`).
    Those of a convolution's groups are a record each, as their weights are.
    """
    if isinstance(solution, GroupedFactors):
        for number, part in enumerate(solution.parts):
            save_solution(root, group_name(layer, number), part, provenance)
        return
    specs = schema.LOW_RANK if isinstance(solution, LowRankFactors) else schema.SELECTION
    arrays = {spec.name: array for spec in specs if (array := getattr(solution, spec.name)) is not None}
    values = {"method": solution.method.value, "diagnostics": dataclasses.asdict(solution.diagnostics)}
    save_record(solution_path(root, layer, solution.method), specs, arrays, values, provenance, names=2)


def load_solution(root: Path, layer: str, method: Method) -> LowRankFactors | ChannelSelection:
    """Read a solution back, bit for bit."""
    specs = schema.LOW_RANK if method.family is Family.LOW_RANK else schema.SELECTION
    arrays, values = load_record(solution_path(root, layer, method), specs)
    diagnostics = Diagnostics(**values["diagnostics"])
    if method.family is Family.SELECTION:
        factor = arrays.pop("factor", None)
        return ChannelSelection(method=method, diagnostics=diagnostics, factor=factor, **arrays)
    weight, _ = load_layer_weights(root, layer)
    return LowRankFactors(method=method, weight=weight.astype(np.float64), diagnostics=diagnostics, **arrays)


def check_record(root: Path, path: Path) -> None:
    """Read a whole record and compare every array to its digest; raises StoreDamagedError."""
    if path.relative_to(root).parts[0] in {"moments", "shards"}:
        load_moments(path)
        return
    specs = {spec.name: spec for spec in (*schema.WEIGHTS, *schema.LOW_RANK, *schema.SELECTION)}
    load_record(path, list(specs.values()))


def records(root: Path) -> list[Path]:
    """Return the folders of every record of a store, shards of merged ones too; damaged ones are among them."""
    depths = {"weights": 1, "moments": 3, "shards": 4, "solutions": 2}
    return sorted(path for kind, depth in depths.items() for path in _folders_below(root / kind, depth))


def _folders_below(folder: Path, depth: int) -> list[Path]:
    """Return the folders so many levels below one; a glob would pass over one that cannot be listed: StoreError."""
    if depth == 0:
        return [folder]
    with readable(folder):
        if not folder.is_dir():
            return []
        inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(TEMPORARY)]
    return [path for child in inner for path in _folders_below(child, depth - 1)]


def provenance_of(path: Path) -> dict[str, Any] | None:
    """Return what travelled along with a record, or None where there is no record."""
    try:
        return dict(_attributes(path)["provenance"])
    except StoreNotFoundError:
        return None


def origin_of(path: Path) -> dict[str, Any] | None:
    """Return what `provenance_of` does, and None also for a damaged record: for one that can be made again."""
    try:
        return provenance_of(path)
    except StoreDamagedError:
        return None


def save_record(
    path: Path,
    specs: Sequence[ArraySpec],
    arrays: Arrays,
    values: Mapping[str, Any],
    provenance: Provenance,
    *,
    names: int,
) -> None:
    """Write a record whole: the arrays that `specs` declares, plain values, and what travels along.

    The last `names` folders of its path are the name it carries.
    """
    with new_folder(path) as folder:
        _fill(folder, specs, arrays, values, provenance, path.parts[-names:])


def _fill(
    folder: Path,
    specs: Sequence[ArraySpec],
    arrays: Arrays,
    values: Mapping[str, Any],
    provenance: Provenance,
    name: Name,
) -> None:
    for spec in specs:
        if spec.name in arrays:
            write_array(folder, spec, arrays[spec.name])
    seal_record(folder, values, {part: digest_of_array(array) for part, array in arrays.items()}, provenance, name)


def seal_record(
    folder: Path, values: Mapping[str, Any], digests: Mapping[str, int], provenance: Provenance, name: Name
) -> None:
    """Write a record's plain values, its arrays' digests, what travels along, and its name."""
    write_group(folder, {**values, "digests": dict(digests), "provenance": dict(provenance), _NAME: list(name)})


def load_record(path: Path, specs: Sequence[ArraySpec]) -> tuple[Arrays, dict[str, Any]]:
    """Read the arrays of `specs` that a record has, and its values; StoreNotFoundError, StoreDamagedError.

    Where the record is replaced meanwhile, it is read again: the old one or the new one, never a mixture.
    """
    return _settled(path, partial(_load, path, specs))


def _settled(path: Path, read: Callable[[], T]) -> T:
    """Read again where `path` was replaced by another record while it was read."""
    while True:
        before = _identity(path)
        try:
            return read()
        except StoreDamagedError:
            if _identity(path) == before:
                raise


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from the one that takes its place."""
    if not folder_there(path):
        return None
    try:
        with readable(path):
            status = path.stat()
    except OSError:  # replaced at this very moment
        return None
    return status.st_ino, status.st_ctime_ns


def _load(path: Path, specs: Sequence[ArraySpec]) -> tuple[Arrays, dict[str, Any]]:
    values = _attributes_now(path)
    digests = values["digests"]
    arrays: Arrays = {}
    for spec in specs:
        if spec.name not in digests:
            continue
        try:
            read_metadata(path / spec.name)
            with readable(path / spec.name):
                array = np.asarray(cast("Any", zarr.open_array(path / spec.name, mode="r"))[...])
        except (StoreDamagedError, *schema.DECODE_ERRORS) as error:
            message = f"'{path}': array '{spec.name}' is damaged ({error}); {_REMEDY}"
            raise StoreDamagedError(message) from error
        if digest_of_array(array) != digests[spec.name]:
            raise StoreDamagedError(f"'{path}': array '{spec.name}' does not match its digest; {_REMEDY}")
        arrays[spec.name] = array
    return arrays, values


def _attributes(path: Path) -> dict[str, Any]:
    return _settled(path, partial(_attributes_now, path))


def _attributes_now(path: Path) -> dict[str, Any]:
    if not folder_there(path):
        raise StoreNotFoundError(f"there is no record at '{path}': run the step that makes it")
    attributes: dict[str, Any] = read_metadata(path)["attributes"]
    name = attributes.get(_NAME, [])  # records of 0.1 carry none
    if name and tuple(name) != path.parts[-len(name) :]:
        raise StoreDamagedError(f"'{path}' holds the record of '{'/'.join(name)}', moved here; {_REMEDY}")
    return attributes


def digest_of_array(array: NDArray[Any]) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).data.cast("B"))
