"""A name in a bucket, used as a path is: the few operations that the modules of `storage` need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import total_ordering
from pathlib import PurePath
from typing import Any

from dalr_stream.errors import InvalidInputError
from dalr_stream.storage.places.address import Address, parse
from dalr_stream.storage.places.bucket import Bucket, connect

HEAD = "zarr.json"
"""The object that makes a record, an array or a group be there: it is put last, and deleted first."""
DRAWN = "at-"
"""How the names begin that are drawn for the arrays of a record."""


@total_ordering
class BucketPath:
    """A store in a bucket, or a name below it. Sent to another process it is its URL: credentials are found there."""

    __slots__ = ("_names", "address")

    def __init__(self, address: Address, names: Sequence[str]) -> None:
        self.address = address
        self._names = tuple(names)

    @classmethod
    def of(cls, url: str) -> BucketPath:
        """Return the path of a URL; see `address.parse` for what is refused."""
        return cls(*parse(url))

    @property
    def bucket(self) -> Bucket:
        """The bucket, connected."""
        return connect(self.address)

    @property
    def key(self) -> str:
        """The name of the object within the bucket."""
        return "/".join(self._names)

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket and each part of the name."""
        return (self.address.url, *self._names)

    @property
    def name(self) -> str:
        """The last part."""
        return self._names[-1] if self._names else ""

    @property
    def parent(self) -> BucketPath:
        """What it lies in."""
        return BucketPath(self.address, self._names[:-1])

    @property
    def parents(self) -> list[BucketPath]:
        """What it lies in, from the inmost out."""
        return [BucketPath(self.address, self._names[:count]) for count in reversed(range(len(self._names)))]

    def __truediv__(self, name: str | PurePath) -> BucketPath:
        return BucketPath(self.address, (*self._names, *PurePath(name).parts))

    def with_name(self, name: str) -> BucketPath:
        """Return the one of another name beside it."""
        return self.parent / name

    def is_relative_to(self, other: object) -> bool:
        """Tell whether it lies below another, or is it."""
        return isinstance(other, BucketPath) and other.parts == self.parts[: len(other.parts)]

    def resolve(self) -> BucketPath:
        """Return itself: there are no links."""
        return self

    def read_bytes(self) -> bytes:
        """Return the object; raises FileNotFoundError, and StoreError where the bucket cannot be reached."""
        return self.bucket.read(self.key)

    def write_bytes(self, data: bytes) -> None:
        """Put the object; raises StoreLockedError where this process lost the store to another writer."""
        for claim in self._claims():
            claim.require()
        self.bucket.put(self.key, data)

    def is_file(self) -> bool:
        """Tell whether there is an object."""
        return self.bucket.version(self.key) is not None

    def is_dir(self) -> bool:
        """Tell whether there is a record, an array or a group here, or anything below."""
        return (self / HEAD).is_file() or self.bucket.any_below(self.key)

    def exists(self) -> bool:
        """Tell whether there is an object, or anything below."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> list[BucketPath]:
        """Return what lies right below, ascending."""
        folders, objects = self.bucket.names(self.key)
        return [self / name for name in sorted({*folders, *objects})]

    def folders(self) -> list[BucketPath]:
        """Return the names right below that others lie below, ascending."""
        return [self / name for name in self.bucket.names(self.key)[0]]

    def remove(self) -> None:
        """Delete all that lies below: the heads of records and arrays first, so that each is there whole or gone."""
        for claim in self._claims():
            claim.require()
        keys = self.bucket.keys(self.key)
        heads = {key for key in keys if key.endswith(f"/{HEAD}") and f"/{DRAWN}" not in key}
        self.bucket.delete(sorted(heads))
        self.bucket.delete(key for key in keys if key not in heads)

    def remove_object(self) -> None:
        """Delete the object alone."""
        for claim in self._claims():
            claim.require()
        self.bucket.delete([self.key])

    def _claims(self) -> list[Any]:
        return [claim for key, claim in self.bucket.claims.items() if self.key.startswith(f"{key}/")]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and (self.address, self._names) == (other.address, other._names)

    def __lt__(self, other: BucketPath) -> bool:
        return self.parts < other.parts

    def __hash__(self) -> int:
        return hash((self.address, self._names))

    def __str__(self) -> str:
        return "/".join(self.parts)

    def __repr__(self) -> str:
        return f"BucketPath('{self}')"

    def __reduce__(self) -> Any:
        if self.address.scheme == "memory":
            raise InvalidInputError(f"'{self}': memory:// lies in one process and is not seen by others: name a bucket")
        return BucketPath, (self.address, self._names)
