"""A record on disk: written whole, checked when read.

A record is a zarr group whose arrays `schema` declares; its attributes carry the plain values, a digest of every
array, and whatever the caller wants to travel along (`provenance`). It is written under a temporary name and renamed,
so a reader sees a whole record or none. It also carries its own name, the last folders of its path: one that was moved
over another is damage, although its digests agree.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import StoreDamagedError, StoreNotFoundError
from dalr_stream.storage import schema
from dalr_stream.storage.arrays import open_array, write_array
from dalr_stream.storage.metadata import read_metadata
from dalr_stream.storage.places.place import Place, identity, is_there, readable
from dalr_stream.storage.records.draft import Draft, arrays_of, new_record
from dalr_stream.storage.schema import ArraySpec

Arrays = dict[str, NDArray[Any]]
Provenance = Mapping[str, Any]
Name = tuple[str, ...]
T = TypeVar("T")
_NAME = "name"
REMEDY = "delete the record's folder and run the step that makes it again"


def provenance_of(path: Place) -> dict[str, Any] | None:
    """Return what travelled along with a record, or None where there is no record."""
    try:
        return dict(attributes(path)["provenance"])
    except StoreNotFoundError:
        return None


def origin_of(path: Place) -> dict[str, Any] | None:
    """Return what `provenance_of` does, and None also for a damaged record: for one that can be made again."""
    try:
        return provenance_of(path)
    except StoreDamagedError:
        return None


def save_record(
    path: Place,
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
    with new_record(path) as draft:
        fill(draft, specs, arrays, values, provenance, path.parts[-names:])


def fill(
    draft: Draft,
    specs: Sequence[ArraySpec],
    arrays: Arrays,
    values: Mapping[str, Any],
    provenance: Provenance,
    name: Name,
) -> None:
    """Write what a record holds: arrays, plain values, what travels along, and its name."""
    for spec in specs:
        if spec.name in arrays:
            write_array(draft.arrays, spec, arrays[spec.name])
    seal_record(draft, values, {part: digest_of_array(array) for part, array in arrays.items()}, provenance, name)


def seal_record(
    draft: Draft, values: Mapping[str, Any], digests: Mapping[str, int], provenance: Provenance, name: Name
) -> None:
    """Write a record's plain values, its arrays' digests, what travels along, and its name."""
    document = {**values, "digests": dict(digests), "provenance": dict(provenance), _NAME: list(name)}
    draft.seal(document)


def load_record(path: Place, specs: Sequence[ArraySpec]) -> tuple[Arrays, dict[str, Any]]:
    """Read the arrays of `specs` that a record has, and its values; StoreNotFoundError, StoreDamagedError.

    Where the record is replaced meanwhile, it is read again: the old one or the new one, never a mixture.
    """
    return _settled(path, partial(_load, path, specs))


def _settled(path: Place, read: Callable[[], T]) -> T:
    """Read again where `path` was replaced by another record while it was read."""
    while True:
        before = identity(path)
        try:
            return read()
        except StoreDamagedError:
            if identity(path) == before:
                raise


def _load(path: Place, specs: Sequence[ArraySpec]) -> tuple[Arrays, dict[str, Any]]:
    values = _attributes_now(path)
    digests, folder = values["digests"], arrays_of(path, values)
    arrays: Arrays = {}
    for spec in specs:
        if spec.name not in digests:
            continue
        with reading(path, spec.name):
            read_metadata(folder / spec.name)
            array = np.asarray(open_array(folder / spec.name)[...])
        if digest_of_array(array) != digests[spec.name]:
            raise StoreDamagedError(f"'{path}': array '{spec.name}' does not match its digest; {REMEDY}")
        arrays[spec.name] = array
    return arrays, values


@contextmanager
def reading(path: Place, array: str) -> Iterator[None]:
    """Name the record, the array and the remedy where the array turns out to be damaged, or cannot be read."""
    try:
        with readable(path / array):
            yield
    except (StoreDamagedError, *schema.DECODE_ERRORS) as error:
        raise StoreDamagedError(f"'{path}': array '{array}' is damaged ({error}); {REMEDY}") from error


@contextmanager
def holding(path: Place, what: str) -> Iterator[None]:
    """Name the record and the remedy where it lacks a value or an array of `what` it should hold."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise StoreDamagedError(f"'{path}' holds no {what} ({error}); {REMEDY}") from error


def shape_of_array(path: Place, array: str) -> tuple[int, ...]:
    """Return the shape of one of a record's arrays, from its metadata alone; StoreNotFoundError, StoreDamagedError."""
    return _settled(path, partial(_shape_now, path, array))


def _shape_now(path: Place, array: str) -> tuple[int, ...]:
    folder = arrays_of(path, _attributes_now(path))
    with reading(path, array):
        return tuple(read_metadata(folder / array)["shape"])


def attributes(path: Place) -> dict[str, Any]:
    """Return a record's plain values, without its arrays; raises StoreNotFoundError and StoreDamagedError."""
    return _settled(path, partial(_attributes_now, path))


def _attributes_now(path: Place) -> dict[str, Any]:
    if not is_there(path):
        raise StoreNotFoundError(f"there is no record at '{path}': run the step that makes it")
    try:
        attributes: dict[str, Any] = read_metadata(path)["attributes"]
    except StoreDamagedError as error:
        raise StoreDamagedError(f"{error}; {REMEDY}") from error
    if not all(isinstance(attributes.get(part), dict) for part in ("digests", "provenance")):
        raise StoreDamagedError(f"'{path}' is a folder of another kind, not a record; {REMEDY}")
    name = attributes.get(_NAME, [])  # records of 0.1 carry none
    if name and tuple(name) != path.parts[-len(name) :]:
        raise StoreDamagedError(f"'{path}' holds the record of '{'/'.join(name)}', moved here; {REMEDY}")
    return attributes


def digest_of_array(array: NDArray[Any]) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).data.cast("B"))
