"""Requests to one bucket: each is tried again where the link or the server fails, and each failure is one line.

A put may be conditional: on there being no object of the name, or on the object being the version that was read. Where
the answer to one is lost, the object is read back: byte for byte what was put, it was put.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from typing import Any, TypeVar

from dalr_stream.errors import InvalidInputError, StoreError
from dalr_stream.storage.places.address import Address

T = TypeVar("T")
Version = Mapping[str, str]
"""What tells an object from the one that takes its place: its ETag, and where versions are numbered, the number."""
REQUEST_TIMEOUT = timedelta(minutes=2)
CONNECT_TIMEOUT = timedelta(seconds=10)
TRIES = 4
RETRY_LIMIT = 8
"""Of each try, by the client: of what the server answered by an error, and where no connection was to be had. Answers
that were too late, or torn, are what the client does not ask for again, and `TRIES` does."""
FIRST_PAUSE = timedelta(milliseconds=100)
"""Before a request is tried again; each further pause is up to twice as long."""
RETRIED_FOR = timedelta(minutes=1)
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

        def get() -> tuple[bytes, Version]:
            found = obstore.get(self.client, key)
            return bytes(found.bytes()), _version(found.meta)

        return self._asked(key, get)

    def version(self, key: str) -> Version | None:
        """Return the version of an object; None where there is none."""
        import obstore

        try:
            return self._asked(key, lambda: _version(obstore.head(self.client, key)))
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

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix. A listing may be late: it decides nothing."""
        import obstore

        return self._asked(
            prefix, lambda: [found["path"] for page in obstore.list(self.client, prefix) for found in page]
        )

    def any_below(self, prefix: str) -> bool:
        """Tell whether anything is listed below a prefix."""
        import obstore

        return self._asked(
            prefix, lambda: any(True for page in obstore.list(self.client, prefix, chunk_size=1) if page)
        )

    def names(self, prefix: str) -> tuple[list[str], list[str]]:
        """Return the last parts of the prefixes and of the objects right below a prefix, ascending."""
        import obstore

        found = self._asked(prefix, lambda: obstore.list_with_delimiter(self.client, prefix))
        objects = [item["path"] for item in found["objects"]]
        return _last_parts(found["common_prefixes"]), _last_parts(objects)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are passed over."""
        import obstore

        every = list(keys)
        for first in range(0, len(every), _KEYS_AT_ONCE):
            some = every[first : first + _KEYS_AT_ONCE]
            try:
                self._asked(some[0], partial(obstore.delete, self.client, some))
            except FileNotFoundError:
                for key in some:
                    with suppress(FileNotFoundError):
                        self._asked(key, partial(obstore.delete, self.client, key))

    def _put(self, key: str, data: bytes, mode: Any) -> Version:
        import obstore

        return self._asked(key, lambda: _version(obstore.put(self.client, key, data, mode=mode, use_multipart=False)))

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

    def _asked(self, key: str, request: Callable[[], T]) -> T:
        """Return what a request gives; one that failed for no reason of its own is made again."""
        from obstore.exceptions import GenericError

        pause = FIRST_PAUSE.total_seconds()
        with self.explained(key):
            for _ in range(TRIES - 1):
                try:
                    return request()
                except GenericError as error:
                    if _NOT_FOUND in str(error):
                        raise
                    time.sleep(pause)
                    pause *= 2
            return request()

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


def _last_parts(paths: Iterable[str]) -> list[str]:
    return sorted(path.rsplit("/", 1)[-1] for path in paths)


def _in_one_line(error: Exception) -> str:
    """Return what went wrong, less what follows a '?' in a URL, which may be a signature, and less the server's XML."""
    return _QUERY.sub("", str(error).partition("\n")[0].partition(": <")[0])
