"""What killed writers leave in a bucket: arrays that no record names, and tiles of arrays that are gone.

Only names that this package draws are deleted. A listing says where to look, and no more: what counts is read from the
record itself.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator

from dalr_stream.storage.layout import KINDS
from dalr_stream.storage.places.path import DRAWN, HEAD, BucketPath

AT = "at"
"""Attribute of a record in a bucket: the name below it at which its arrays lie."""
_DRAWN = re.compile(rf"{DRAWN}[0-9a-f]{{16}}")


def draw() -> str:
    """Return a name that nobody else draws, for the arrays of a record that is on its way."""
    return f"{DRAWN}{secrets.token_hex(8)}"


def is_drawn(name: str) -> bool:
    """Tell whether a name is one that `draw` gives; a record may come from anywhere, and name another place."""
    return _DRAWN.fullmatch(name) is not None


def sweep(root: BucketPath) -> None:
    """Delete what killed writers left in a store; call it with the store claimed."""
    for kind, depth in KINDS.items():
        if kind != "activations":
            sweep_records(root / kind, depth + 1)
    for domain in (root / "activations").folders():
        for layer in domain.folders():
            if not (layer / HEAD).is_file():
                layer.remove()


def sweep_records(folder: BucketPath, depth: int) -> None:
    """Delete arrays that the records, so many levels below a folder, do not name."""
    folder.bucket.delete(_unnamed_arrays(folder, depth))


def _unnamed_arrays(folder: BucketPath, depth: int) -> Iterator[str]:
    """Yield the keys of arrays that the records, so many levels below a folder, do not name."""
    records: dict[BucketPath, dict[str, list[str]]] = {}
    skipped = len(folder.parts) - 1
    for key in folder.bucket.keys(folder.key):
        names = key.split("/")[skipped:]
        record = folder / "/".join(names[:depth])
        below = records.setdefault(record, {})
        if len(names) > depth and is_drawn(names[depth]):
            below.setdefault(names[depth], []).append(key)
    for record, drawn in records.items():
        named = named_at(record) if drawn else ""
        yield from (key for name, keys in drawn.items() if name != named for key in keys)


def named_at(record: BucketPath) -> str:
    """Return the name at which a record's arrays lie; empty where there is no record, or it is damaged."""
    try:
        at = str(json.loads((record / HEAD).read_bytes())["attributes"].get(AT))
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return ""
    return at if is_drawn(at) else ""
