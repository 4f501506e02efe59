"""Small records as JSON files with a digest: read and written here alone.

    {"kind": "evaluation", "schema": 1, "digest": "...", "content": ...}

The digest covers kind, schema and content, and a file counts only if it is byte for byte what `write_record` makes of
them: half a file, a changed digit, another kind, or something that is not JSON is one error that says what to do.
Values come back as JSON has them: tuples as lists, keys as text.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreError, StoreNotFoundError
from dalr_stream.storage.places.place import Place, make_folder, write_file


@dataclass(frozen=True, slots=True)
class RecordKind:
    """What a file holds, and how it comes back where it is lost."""

    name: str
    schema: int
    """Changes whenever a reader of the old content would misread the new one."""
    remedy: str
    """The command that writes the file, in the imperative: `run evaluate`."""


def write_record(path: Place, kind: RecordKind, content: Any) -> None:
    """Replace the record at `path`; a reader, also after a power cut, sees the old one or the new one.

    Raises TypeError for what JSON cannot hold, DiskSpaceError and StoreError where the disk refuses.
    """
    data = _sealed(kind.name, kind.schema, json.loads(json.dumps(content)))
    make_folder(path.parent)
    write_file(path, data)


def read_record(path: Place, kind: RecordKind) -> Any:
    """Return the content of the record at `path`.

    Raises StoreNotFoundError where there is none, StoreDamagedError where it is not what was written or is a record of
    another kind, FingerprintMismatchError where another version wrote it, and StoreError where it cannot be read.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(f"there is no '{path}': {kind.remedy} first") from None
    except OSError as error:
        raise StoreError(f"'{path}' cannot be read ({error.strerror}): check the disk and your permissions") from error
    again = f"{kind.remedy} again, which replaces it"
    try:
        record = json.loads(data)
        name, schema, content = record["kind"], record["schema"], record["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise StoreDamagedError(f"'{path}' is damaged: it is no record of kind '{kind.name}'; {again}") from None
    if data != _sealed(name, schema, content):
        raise StoreDamagedError(f"'{path}' is damaged: its digest does not match its content; {again}")
    if name != kind.name:
        raise StoreDamagedError(f"'{path}' holds a record of kind '{name}', not '{kind.name}'; {again}")
    if schema != kind.schema:
        raise FingerprintMismatchError(
            f"'{path}' has schema {schema}, this version reads {kind.schema}: {again}, or use the version that wrote it"
        )
    return content


def digest_of(plain: Any) -> str:
    """SHA-256 of a JSON-like value, whatever the order of its keys."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sealed(name: Any, schema: Any, content: Any) -> bytes:
    digest = digest_of([name, schema, content])
    record = {"kind": name, "schema": schema, "digest": digest, "content": content}
    return (json.dumps(record, indent=1) + "\n").encode()
