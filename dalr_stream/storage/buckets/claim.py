"""One writer of a store in a bucket: a claim that is renewed, and a manifest that is replaced only by its own writer.

    <store>/writer.lock     who writes, and a number that each beat renews; replaced by conditional puts alone
    <store>/manifest.json   replaced on condition that it is the version this writer knows

A second writer is refused while the first runs. A claim whose process is gone, or that was not renewed for
`LEASE_SECONDS`, is taken over: the new writer first rewrites the manifest, so that the next commit of the old one, were
it only slow, fails and it stops. Opening also finds out whether the server heeds conditions: two puts that must fail.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from dalr_stream.errors import StoreError, StoreLockedError
from dalr_stream.storage.buckets.process import is_gone, is_this, this_process
from dalr_stream.storage.buckets.sweep import sweep
from dalr_stream.storage.layout import LOCK, MANIFEST
from dalr_stream.storage.places.bucket import Version
from dalr_stream.storage.places.path import BucketPath

LEASE_SECONDS = 60.0
"""How long a claim of another machine holds without being renewed: solving keeps a thread from running for so long."""
BEAT_SECONDS = 10.0
TILES_UNDER_WAY = 2
"""Packed, and put while the next rows are made."""
_POLL_SECONDS = 1.0
_TRIES = 10
_NO_VERSION: Version = {"e_tag": '"no-such-version"', "version": "1"}


@contextmanager
def claimed(root: BucketPath) -> Iterator[None]:
    """Hold the store as its one writer, having cleared what a killed one left.

    Raises StoreLockedError where another process holds it, and StoreError where the server does not heed conditions.
    """
    claim = Claim(root)
    if root.bucket.claims.setdefault(root.key, claim) is not claim:
        raise _locked(root, "this process")
    try:
        claim.take()
        with claim.beating():
            yield
    except BaseException:
        claim.release(swept=False)
        raise
    else:
        claim.release()
    finally:
        del root.bucket.claims[root.key]


class Claim:
    """A claim to a store in a bucket."""

    def __init__(self, root: BucketPath) -> None:
        self._root = root
        self._bucket = root.bucket
        self._me = {**this_process(), "claim": secrets.token_hex(8)}
        self._lock, self._manifest = root / LOCK, root / MANIFEST
        self._lock_version: Version = {}
        self._manifest_version: Version | None = None
        self._beats = self._commits = 0
        self._confirmed = 0.0
        self._lost = False
        self._one_at_a_time = threading.Lock()
        self._putting = ThreadPoolExecutor(TILES_UNDER_WAY, "put tiles")
        self._under_way: deque[Future[None]] = deque()

    def take(self) -> None:
        """Claim the store, or raise."""
        left_by_another = self._take_lock()
        self._confirmed = time.monotonic()
        self._require_conditions()
        if left_by_another:
            self._fence()
            sweep(self._root)
        self._manifest_version = self._bucket.version(self._manifest.key)

    def require(self) -> None:
        """Raise StoreLockedError where another writer has taken the store over; asks, where nobody did for a while."""
        if self._lost or time.monotonic() - self._confirmed > LEASE_SECONDS / 2:
            self.confirm()

    def confirm(self) -> None:
        """Renew the claim now; raises StoreLockedError where another writer has taken the store over."""
        with self._one_at_a_time:
            if not self._lost:  # the same bytes again where nobody knows whether they were put the last time
                version = self._bucket.put_over(self._lock.key, self._state(self._beats + 1), self._lock_version)
                self._lost = version is None
            if self._lost or version is None:
                raise _taken_over(self._root)
            self._lock_version, self._confirmed = version, time.monotonic()
            self._beats += 1

    def commit(self, manifest: Callable[[str], bytes]) -> None:
        """Replace the manifest by what `manifest` makes of a word drawn for this commit."""
        self.require()
        self.settle()
        self._commits += 1
        data = manifest(f"{self._me['claim']}-{self._commits}")
        version = self._put(self._manifest.key, data, self._manifest_version)
        if version is None:
            self._lost = True
            raise _taken_over(self._root)
        self._manifest_version = version

    def put_tile(self, key: str, data: bytes) -> None:
        """Begin to put an object that is written once; raises what became of one before it.

        One that a killed writer left under its name is replaced.
        """
        self.require()
        if len(self._under_way) == TILES_UNDER_WAY:
            self._under_way.popleft().result()
        self._under_way.append(self._putting.submit(self._put_tile, key, data))

    def settle(self) -> None:
        """Wait until every tile is put; raises where one could not be."""
        while self._under_way:
            self._under_way.popleft().result()

    def _put_tile(self, key: str, data: bytes) -> None:
        if self._bucket.put_new(key, data) is None:
            self.confirm()  # else the one that is there may be of the writer that took over
            if self._put(key, data, self._bucket.version(key)) is None:
                raise _taken_over(self._root)

    def _put(self, key: str, data: bytes, known: Version | None) -> Version | None:
        """Put an object in place of the version known, or of none; None where there is another."""
        return self._bucket.put_new(key, data) if known is None else self._bucket.put_over(key, data, known)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Renew the claim from a thread meanwhile; tiles that are under way at the end are waited for."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT_SECONDS):
                with suppress(StoreError):  # whoever writes next hears of it
                    self.confirm()

        thread = threading.Thread(target=beat, name=f"claim to {self._root}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._putting.shutdown(cancel_futures=True)
            done.set()
            thread.join()

    def release(self, *, swept: bool = True) -> None:
        """Give the store back, saying whether it is swept; where that fails, the claim ends with the process."""
        state = json.dumps({"released": self._me, "swept": swept}).encode()
        with suppress(StoreError):
            if self._lock_version:
                self._bucket.put_over(self._lock.key, state, self._lock_version)

    def _take_lock(self) -> bool:
        """Become who `writer.lock` names; True where another left something to be swept."""
        for _ in range(_TRIES):
            try:
                data, before = self._bucket.read_version(self._lock.key)
            except FileNotFoundError:
                version, left = self._bucket.put_new(self._lock.key, self._state()), False
            else:
                left = self._left(data, before)
                version = self._bucket.put_over(self._lock.key, self._state(), before)
            if version is not None:
                self._lock_version = version
                return left
        raise _locked(self._root, "another process")

    def _left(self, data: bytes, version: Version) -> bool:
        """Tell whether the one who claimed the store left something to be swept; raises where it still writes."""
        try:
            state = json.loads(data)
            if "released" in state:
                return not state["swept"]
            holder: dict[str, Any] = state["held"]
        except (ValueError, LookupError, TypeError):
            holder = {"name": "a writer that cannot be named"}
        gone = is_this(holder) or is_gone(holder)  # this process holds it no more: it could not say so
        if gone is None:
            gone = not self._renewed(version)
        if not gone:
            raise _locked(self._root, str(holder.get("name")))
        return True

    def _renewed(self, version: Version) -> bool:
        """Watch a claim for as long as it may go without being renewed."""
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(_POLL_SECONDS, LEASE_SECONDS))
            if self._bucket.version(self._lock.key) != version:
                return True
        return False

    def _require_conditions(self) -> None:
        """Raise StoreError where the server puts an object over another, though told not to."""
        for ignored in (
            self._bucket.put_new(self._lock.key, b"{}"),
            self._bucket.put_over(self._lock.key, b"{}", _NO_VERSION),
        ):
            if ignored is not None:
                self._lock_version = {}
                self._bucket.delete([self._lock.key])
                raise StoreError(
                    f"'{self._root}': {self._bucket.address.server} ignores the conditions of a put (If-Match, "
                    "If-None-Match), so two writers could overwrite one another: use a server that heeds them, or a "
                    "folder"
                )

    def _fence(self) -> None:
        """Rewrite the manifest that another writer left, so that no commit of it counts any more."""
        for _ in range(_TRIES):
            try:
                data, version = self._bucket.read_version(self._manifest.key)
                document = {**json.loads(data), "commit": f"{self._me['claim']}-0"}
            except (FileNotFoundError, ValueError, TypeError):
                return  # nothing to take over; reading a damaged one says so
            if self._bucket.put_over(self._manifest.key, json.dumps(document).encode(), version) is not None:
                return
        raise _locked(self._root, "another process")

    def _state(self, beat: int = 0) -> bytes:
        return json.dumps({"held": self._me, "beat": beat}).encode()

    def forget_manifest(self) -> None:
        """Delete the manifest: there is no store any more."""
        self.require()
        self._bucket.delete([self._manifest.key])
        self._manifest_version = None


def claim_to(root: BucketPath) -> Claim:
    """Return this process's claim to a store; raises StoreLockedError where it has none."""
    claim: Claim | None = root.bucket.claims.get(root.key)
    if claim is None:
        raise StoreLockedError(f"'{root}' is not held for writing by this process: open it by a writer")
    return claim


def _locked(root: BucketPath, holder: str) -> StoreLockedError:
    return StoreLockedError(f"'{root}' is being written by {holder}: wait for it, or write to another store")


def _taken_over(root: BucketPath) -> StoreLockedError:
    return StoreLockedError(
        f"'{root}' was taken over by another writer, as this one had not renewed its claim for {LEASE_SECONDS:.0f} s: "
        "what was committed holds; run the same command again once the other is done"
    )
