"""The batches of a domain in columns: 72 bytes each in memory and 65 on disk, where an object each took 350.

A store of 100,000 batches writes all of them at every commit and reads them at every command, so what one batch costs
is what a long capture costs beside its rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.rows.share import UNSEEN
from dalr_stream.storage.schema import require_count

_AT_ONCE = 4096
"""Digests made to text at a time."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch of the network's input."""

    samples: int
    """How many there are in it."""
    digest: str
    """SHA-256 of what the network sees of it."""

    def __post_init__(self) -> None:
        require_count(self.samples, "samples")
        if not self.digest or " " in self.digest or "\0" in self.digest:
            raise InvalidInputError(f"a batch's digest must be a word, got {self.digest!r}")


@dataclass(frozen=True, eq=False, repr=False)
class Batches(Sequence[BatchRecord]):
    """A domain's batches in order; never changes. What every layer's fingerprint begins with is digested once."""

    samples: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(batches,): of each."""
    digests: NDArray[np.bytes_] = field(default_factory=lambda: np.zeros(0, np.bytes_))
    """(batches,): of each, in UTF-8."""

    @classmethod
    def of(cls, batches: Iterable[BatchRecord]) -> Batches:
        """Gather single ones."""
        log = BatchLog()
        for batch in batches:
            log.append(batch)
        return log.batches

    @classmethod
    def joined(cls, several: Iterable[Batches]) -> Batches:
        """Return the batches of all, one after the other."""
        parts = [cls(), *several]
        return cls(np.concatenate([part.samples for part in parts]), np.concatenate([part.digests for part in parts]))

    @classmethod
    def of_plain(cls, plain: Any) -> Batches:
        """Return what `plain` gave, or a list of batches, as schema 3 had it.

        Raises TypeError, LookupError, AttributeError or ValueError for anything else.
        """
        if isinstance(plain, list):
            return cls.of(BatchRecord(batch["samples"], batch["digest"]) for batch in plain)
        runs = [
            (require_count(samples, "samples"), require_count(run, "a run", 1)) for samples, run in plain["samples"]
        ]
        words = plain["digests"].encode().split(b" ") if plain["digests"] else []
        count = sum(run for _, run in runs)
        if count != len(words) or not all(words) or any(b"\0" in word for word in words):
            raise ValueError(f"there are {count} batches, and {len(words)} digests of them")
        samples, lengths = np.array(runs, np.int64).reshape(-1, 2).T
        return cls(np.repeat(samples, lengths), np.array(words, np.bytes_))

    def plain(self) -> dict[str, Any]:
        """Return the same in plain values: runs of equal numbers of samples, and all digests in one text."""
        runs = [[samples, sum(1 for _ in run)] for samples, run in groupby(self.samples.tolist())]
        return {"samples": runs, "digests": b" ".join(self.digests.tolist()).decode()}

    @cached_property
    def digested(self) -> Any:
        """SHA-256 of the beginning of what `digest_of` would be given: keys are sorted, and `batches` comes first."""
        digest = hashlib.sha256(b'{"batches":[')
        for first in range(0, len(self), _AT_ONCE):
            words = [word.decode() for word in self.digests[first : first + _AT_ONCE].tolist()]
            text = json.dumps(words, separators=(",", ":"))[1:-1]
            digest.update(f"{',' if first else ''}{text}".encode())
        digest.update(b"],")
        return digest

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """(batches,): which another process loads, so that their digests are not known here."""
        unseen: NDArray[np.bool_] = self.digests == UNSEEN.encode()
        return unseen

    def differ(self, other: Batches) -> int | None:
        """Return the first number at which two are not the same, as far as both know; None where they agree."""
        both = min(len(self), len(other))
        known = ~(self[:both].unseen | other[:both].unseen)
        digests = (self.digests[:both] != other.digests[:both]) & known
        different = np.flatnonzero((self.samples[:both] != other.samples[:both]) | digests)
        return int(different[0]) if different.size else None if len(self) == len(other) else both

    def completed(self, other: Batches) -> Batches:
        """Return these with the digests that `other`, which agrees with them, knows and they do not."""
        return Batches(self.samples, np.where(self.unseen, other.digests, self.digests))

    def __len__(self) -> int:
        return self.samples.size

    @overload
    def __getitem__(self, number: int) -> BatchRecord: ...
    @overload
    def __getitem__(self, number: slice) -> Batches: ...
    def __getitem__(self, number: int | slice) -> BatchRecord | Batches:
        if isinstance(number, slice):
            return Batches(self.samples[number], self.digests[number])
        return BatchRecord(int(self.samples[number]), self.digests[number].decode())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Batches):
            return NotImplemented
        return np.array_equal(self.samples, other.samples) and np.array_equal(self.digests, other.digests)

    def __hash__(self) -> int:
        return hash(self.samples.tobytes())

    def __repr__(self) -> str:
        return f"<{len(self):,} batches of {int(self.samples.sum()):,} samples>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Batches, (self.samples, self.digests)  # a digest under way cannot be sent to another process


class BatchLog:
    """Batches as they come; what `batches` gave does not change when more come."""

    def __init__(self, batches: Batches | None = None) -> None:
        """Begin with `batches`."""
        start = batches or Batches()
        self._samples, self._digests, self._length = start.samples, start.digests, len(start)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> BatchRecord:
        return self.batches[number]

    @property
    def batches(self) -> Batches:
        """Those so far."""
        return Batches(self._samples[: self._length], self._digests[: self._length])

    def append(self, batch: BatchRecord) -> None:
        """Take the next one."""
        word = batch.digest.encode()
        if self._length == self._samples.size or len(word) > self._digests.itemsize:
            self._grow(len(word))
        self._samples[self._length], self._digests[self._length] = batch.samples, word
        self._length += 1

    def _grow(self, width: int) -> None:
        """Move to larger columns: those that `batches` gave stay as they are."""
        so_far, room = self.batches, self._length + max(64, self._length // 4)
        self._samples = np.zeros(room, np.int64)
        self._digests = np.zeros(room, f"S{max(width, so_far.digests.itemsize)}")
        self._samples[: self._length], self._digests[: self._length] = so_far.samples, so_far.digests
