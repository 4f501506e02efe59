"""Where something of a store lies: a folder or file on disk, or a name in a bucket; and what is done to either.

On disk each of these is what `durable` does. In a bucket a put replaces an object whole, so nothing is synced or
renamed; a record becomes visible by its head, which is put last. See `buckets`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path, PurePath

from dalr_stream.errors import InvalidInputError
from dalr_stream.storage import durable
from dalr_stream.storage.places.address import is_url
from dalr_stream.storage.places.path import HEAD, BucketPath

Place = Path | BucketPath


def place_of(where: str | Place) -> Place:
    """Return the place of a path, or of a URL of a bucket; raises InvalidInputError for a URL that is not taken."""
    if isinstance(where, BucketPath):
        return where
    if isinstance(where, str) and is_url(where):
        return BucketPath.of(where)
    path = Path(where)
    if path.parts and path.parts[0].endswith(":") and not path.exists():
        raise InvalidInputError(f"store: '{path}' has lost a slash on its way through a Path: give the URL as a str")
    return path


def below(root: Place, place: Place) -> PurePath:
    """Return the name of a place as seen from the store it is in."""
    return PurePath(*place.parts[len(root.parts) :])


def children(place: Place) -> list[Place]:
    """Return what lies right in a folder, ascending; nothing where there is none."""
    if isinstance(place, BucketPath):
        return list(place.iterdir())
    with durable.readable(place):
        return sorted(place.iterdir()) if place.is_dir() else []


def folders(place: Place) -> list[Place]:
    """Return the folders right in a folder, ascending; of a bucket the names that others lie below."""
    if isinstance(place, BucketPath):
        return list(place.folders())
    with durable.readable(place):
        return [path for path in children(place) if path.is_dir()]


def is_there(place: Place) -> bool:
    """Tell whether a record or an array is there; on disk one that is being replaced is waited for."""
    return (place / HEAD).is_file() if isinstance(place, BucketPath) else durable.folder_there(place)


def make_folder(place: Place) -> None:
    """Make a folder and those above it; a bucket has none to make."""
    if not isinstance(place, BucketPath):
        durable.make_folder(place)


def write_file(place: Place, data: bytes) -> None:
    """Replace a file or an object: a reader sees the old bytes or the new ones."""
    if isinstance(place, BucketPath):
        place.write_bytes(data)
    else:
        durable.write_file(place, data)


def remove_folder(place: Place) -> None:
    """Remove a folder that may be absent, or all objects below a name: a record is there whole, or gone."""
    if isinstance(place, BucketPath):
        place.remove()
    else:
        durable.remove_folder(place)


def remove_file(place: Place) -> None:
    """Remove a file or an object that may be absent."""
    if isinstance(place, BucketPath):
        place.remove_object()
    else:
        place.unlink(missing_ok=True)


def explained(place: Place) -> AbstractContextManager[None]:
    """Turn a failure to write into an error that names the place and the remedy."""
    return place.bucket.explained(place.key) if isinstance(place, BucketPath) else durable.explained(place)


def readable(place: Place) -> AbstractContextManager[None]:
    """Turn a failure that says nothing of the bytes into a StoreError; what is not there stays an OSError."""
    return place.bucket.explained(place.key) if isinstance(place, BucketPath) else durable.readable(place)


def identity(place: Place) -> object:
    """Return what tells a record from the one that takes its place; None where there is none."""
    if isinstance(place, BucketPath):
        return place.bucket.version((place / HEAD).key)
    if not durable.folder_there(place):
        return None
    try:
        with durable.readable(place):
            status = place.stat()
    except OSError:  # replaced at this very moment
        return None
    return status.st_ino, status.st_ctime_ns
