"""A record on its way: filled where no reader looks, and there whole once its head is.

On disk it is filled in a folder under a temporary name, which then takes its place. In a bucket, which renames nothing,
the arrays go below the record under a name drawn for them, and its `zarr.json`, which says the name, is put last; then
the arrays of the record that was there are deleted. A reader sees the old record or the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dalr_stream.errors import StoreDamagedError
from dalr_stream.storage.buckets.sweep import AT, draw, is_drawn, named_at
from dalr_stream.storage.durable import new_folder
from dalr_stream.storage.metadata import write_group
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, explained


@dataclass(frozen=True, slots=True)
class Draft:
    """Where the parts of a record are written until it is whole."""

    arrays: Place
    head: Place
    drawn: Mapping[str, str] = field(default_factory=dict)

    def seal(self, attributes: Mapping[str, Any]) -> None:
        """Write the head: nothing is written after it."""
        write_group(self.head, {**attributes, **self.drawn}, on_its_way=True)


@contextmanager
def new_record(path: Place) -> Iterator[Draft]:
    """Give a draft to fill and seal; on leaving without an error it is the record, replacing the one that was there."""
    if isinstance(path, BucketPath):
        with _in_bucket(path) as draft:
            yield draft
    else:
        with new_folder(path) as folder:
            yield Draft(folder, folder)


def arrays_of(path: Place, attributes: Mapping[str, Any]) -> Place:
    """Return where the arrays of a record with these attributes lie; raises StoreDamagedError for another's place."""
    if AT not in attributes:
        return path
    name = str(attributes[AT])
    if not is_drawn(name):
        raise StoreDamagedError(f"'{path}': its arrays cannot lie at {name!r}: run the step that makes it again")
    return path / name


@contextmanager
def _in_bucket(path: BucketPath) -> Iterator[Draft]:
    replaced, drawn = named_at(path), draw()
    with explained(path):  # on a failure what was put stays, for the next sweep: the head may have been put after all
        yield Draft(path / drawn, path, {AT: drawn})
    if replaced:
        (path / replaced).remove()
