"""Requests to one bucket: each is tried again where the link or the server fails, and each failure is one line.

A put may be conditional: on there being no object of the name, or on the object being the version that was read. Where
the answer to one is lost, the object is read back: byte for byte what was put, it was put.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from dalr_stream.errors import InvalidInputError, StoreError
from dalr_stream.storage.places.address import Address

Version = Mapping[str, str]
"""What tells an object from the one that takes its place: its ETag, and where versions are numbered, the number."""
REQUEST_TIMEOUT = timedelta(minutes=2)
CONNECT_TIMEOUT = timedelta(seconds=10)
RETRY_LIMIT = 10
FIRST_PAUSE = timedelta(milliseconds=100)
"""Before a request is tried again; each further pause is up to twice as long."""
RETRIED_FOR = timedelta(minutes=3)
_KEYS_AT_ONCE = 1000
_QUERY = re.compile(r"(?<=\S)\?\S*")
_NOT_FOUND = "404 Not Found"


class Bucket:
    """A bucket as this process reaches it; made by `connect`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.claims: dict[str, Any] = {}
        """This process's claims to stores in it, by key: see `buckets.claim`."""
        self.client = _client(address)

    @property
    def url(self) -> str:
        """Its URL."""
        return self.address.url

    def read(self, key: str) -> bytes:
        """Return an object; raises FileNotFoundError, and StoreError where the bucket cannot be reached."""
        return self.read_version(key)[0]

    def read_version(self, key: str) -> tuple[bytes, Version]:
        """Return an object and its version."""
        import obstore

        with self.explained(key):
            found = obstore.get(self.client, key)
            return bytes(found.bytes()), _version(found.meta)

    def version(self, key: str) -> Version | None:
        """Return the version of an object; None where there is none."""
        import obstore

        try:
            with self.explained(key):
                return _version(obstore.head(self.client, key))
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Put an object, replacing the one that was there."""
        with self._there(key):
            self._put(key, data, "overwrite")

    def put_new(self, key: str, data: bytes) -> Version | None:
        """Put an object where there is none; None where there is another."""
        with self._there(key):
            return self._conditional(key, data, "create")

    def put_over(self, key: str, data: bytes, version: Version) -> Version | None:
        """Replace an object that is still of this version; None where it is another by now, or gone."""
        try:
            return self._conditional(key, data, dict(version))
        except FileNotFoundError:
            return None

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix, which may be late: they decide nothing."""
        import obstore

        with self.explained(prefix):
            for chunk in obstore.list(self.client, prefix):
                yield from (found["path"] for found in chunk)

    def names(self, prefix: str) -> tuple[list[str], list[str]]:
        """Return the last parts of the prefixes and of the objects right below a prefix, ascending."""
        import obstore

        with self.explained(prefix):
            found = obstore.list_with_delimiter(self.client, prefix)
        objects = (item["path"] for item in found["objects"])
        prefixes, names = (
            sorted(path.rsplit("/", 1)[-1] for path in some) for some in (found["common_prefixes"], objects)
        )
        return prefixes, names

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, in this order; those that are gone already are passed over."""
        import obstore

        every = list(keys)
        for first in range(0, len(every), _KEYS_AT_ONCE):
            some = every[first : first + _KEYS_AT_ONCE]
            try:
                with self.explained(some[0]):
                    obstore.delete(self.client, some)
            except FileNotFoundError:
                self._delete_each(some)

    def _delete_each(self, keys: Iterable[str]) -> None:
        import obstore

        for key in keys:
            try:
                with self.explained(key):
                    obstore.delete(self.client, key)
            except FileNotFoundError:
                continue

    def _put(self, key: str, data: bytes, mode: Any) -> Version:
        import obstore

        with self.explained(key):
            return _version(obstore.put(self.client, key, data, mode=mode, use_multipart=False))

    def _conditional(self, key: str, data: bytes, mode: Any) -> Version | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            return self._put(key, data, mode)
        except (AlreadyExistsError, PreconditionError):
            return self._own(key, data)
        except StoreError:
            own = self._own(key, data)
            if own is None:
                raise
            return own

    def _own(self, key: str, data: bytes) -> Version | None:
        """Return the version of an object that is byte for byte `data`."""
        try:
            found, version = self.read_version(key)
        except FileNotFoundError:
            return None
        return version if found == data else None

    @contextmanager
    def _there(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise self._no_bucket(key) from None

    def _no_bucket(self, key: str) -> StoreError:
        return StoreError(
            f"'{self.url}/{key}': there is no bucket '{self.url}' at {self.address.server}: make it, or name another"
        )

    @contextmanager
    def explained(self, key: str) -> Iterator[None]:
        """Turn what the client raises into a StoreError of one line; no object is a FileNotFoundError."""
        from obstore import exceptions as failures

        place = f"'{self.url}/{key}'"
        try:
            yield
        except (failures.AlreadyExistsError, failures.PreconditionError):
            raise
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", f"{self.url}/{key}") from None
        except (failures.PermissionDeniedError, failures.UnauthenticatedError) as error:
            raise StoreError(
                f"{place}: {self.address.server} refuses the request ({_in_one_line(error)}): check the credentials in "
                "the environment, and what they permit"
            ) from None
        except failures.BaseError as error:
            if _NOT_FOUND in str(error):  # of a listing: of an object it is a FileNotFoundError
                raise self._no_bucket(key) from None
            raise StoreError(
                f"{place} cannot be reached ({_in_one_line(error)}): check the link and the server and run the same "
                "command again: it resumes where it stopped"
            ) from None


@cache
def connect(address: Address) -> Bucket:
    """Return the bucket; each is one object in a process, and what `memory://` holds lies in it."""
    return Bucket(address)


def _client(address: Address) -> Any:
    try:
        from obstore.store import MemoryStore, from_url
    except ModuleNotFoundError:
        raise InvalidInputError(
            f"store: '{address.url}' needs obstore: pip install 'dalr_stream[buckets]', or name a folder"
        ) from None
    if address.scheme == "memory":
        return MemoryStore()
    plain = dict(address.settings).get("endpoint", "").startswith("http://")
    options: dict[str, Any] = {"timeout": REQUEST_TIMEOUT, "connect_timeout": CONNECT_TIMEOUT, "allow_http": plain}
    backoff = {"init_backoff": FIRST_PAUSE, "max_backoff": timedelta(seconds=15), "base": 2}
    retry: Any = {"max_retries": RETRY_LIMIT, "retry_timeout": RETRIED_FOR, "backoff": backoff}
    settings: dict[str, Any] = dict(address.settings)
    open_url: Any = from_url  # its keywords are typed by the scheme of a literal URL
    return open_url(address.url, config=settings, client_options=options, retry_config=retry)


def _version(meta: Any) -> Version:
    return {name: str(meta[name]) for name in ("e_tag", "version") if meta.get(name) is not None}


def _in_one_line(error: Exception) -> str:
    """Return what went wrong, less what follows a '?' in a URL, which may be a signature, and less the server's XML."""
    return _QUERY.sub("", str(error).partition("\n")[0].partition(": <")[0])
