"""The `zarr.json` of every group and array of a store: plain zarr, with a digest of itself among its attributes.

zarr replaces these files without syncing them, and checks little of what it reads back: after a power cut a whole
array can hang on an empty `zarr.json`, and a flipped bit can name another fill value or dimension. So this module
writes them: whole, synced, and sealed. Any zarr reader opens them as before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dalr_stream.errors import StoreDamagedError
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.layout import GROUP
from dalr_stream.storage.places.place import Place, make_folder, readable, write_file

FILE = GROUP
_DIGEST = "digest"
_GROUP = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def read_metadata(folder: Place) -> dict[str, Any]:
    """Return the document of a group or array, less its digest; raises StoreDamagedError where they disagree."""
    try:
        with readable(folder / FILE):
            data = (folder / FILE).read_bytes()
        document: dict[str, Any] = json.loads(data)
        del document["attributes"][_DIGEST]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreDamagedError(f"'{folder}': its metadata cannot be read ({error!r})") from error
    if data != _sealed(document):
        raise StoreDamagedError(f"'{folder}': its metadata do not match their digest")
    return document


def require_group(folder: Place) -> None:
    """Raise StoreDamagedError where a folder is not the plain group that `make_group` makes of it."""
    if read_metadata(folder) != _GROUP:
        raise StoreDamagedError(f"'{folder}': its metadata are not those of a group")


def write_metadata(folder: Place, document: Mapping[str, Any], *, on_its_way: bool = False) -> None:
    """Write the document of a group or array with its digest; it outlives a power cut.

    `on_its_way`: within a `new_record`, which on disk syncs each of its files once before the whole takes its place.
    """
    if on_its_way:
        (folder / FILE).write_bytes(_sealed(document))
    else:
        write_file(folder / FILE, _sealed(document))


def write_group(folder: Place, attributes: Mapping[str, Any], *, on_its_way: bool = False) -> None:
    """Write the document of a group with these attributes, as `write_metadata` does."""
    write_metadata(folder, {**_GROUP, "attributes": dict(attributes)}, on_its_way=on_its_way)


def make_group(root: Place, path: str | PurePath = "") -> None:
    """Make the groups on the way from `root` to `path` below it, where they are not there whole."""
    folders = [folder for folder in ((root / path), *(root / path).parents) if folder.is_relative_to(root)]
    for folder in reversed(folders):
        make_folder(folder)
        file = folder / FILE
        if not file.is_file() or file.read_bytes() != _sealed(_GROUP):
            write_group(folder, {})


def set_rows(folder: Place, rows: int) -> None:
    """Say that an array has `rows` rows."""
    document = read_metadata(folder)
    write_metadata(folder, {**document, "shape": [rows, *document["shape"][1:]]})


def _sealed(document: Mapping[str, Any]) -> bytes:
    attributes = {**document["attributes"], _DIGEST: digest_of(document)}
    return json.dumps({**document, "attributes": attributes}, indent=2).encode()
