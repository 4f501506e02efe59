"""What is known of one pass: its batches, and how many rows of what kind they gave in each layer.

Batches are compared with those of the run that was stopped, and with those of the first pass where there are several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError
from dalr_stream.numerics.rows.tiling import RowBatch, Rows, rows_per_sample, shared_rows
from dalr_stream.storage.batches import Batches, BatchLog, BatchRecord
from dalr_stream.storage.contents import DomainRecord, RowsRecord, plain_fields


class PassLog:
    """Every batch folded so far, also in the runs before this one.

    `first_pass`: the batches that layers of other passes were folded from, where this is not the first. This one must
    get the same: held-out samples are known by their numbers, and one store must not mix two data sets.
    """

    def __init__(self, first_pass: Batches | None = None, to_host: Callable[[Any], Any] = np.asarray) -> None:
        """`to_host` gives rows as an array, whose type is recorded."""
        self._first_pass = first_pass
        self._to_host = to_host
        self._passed = 0
        self.batches = BatchLog()
        self.rows: dict[str, RowsRecord] = {}
        self.shared: Mapping[str, str] | None = None  # the first batch shows it
        self.samples = 0
        """In all batches so far: the number of the next sample."""

    def __len__(self) -> int:
        return len(self.batches)

    def resume(self, plain: Mapping[str, Any], *, ended: bool) -> None:
        """Begin with what `plain` gave in an earlier run; `ended`: it had all batches."""
        batches = Batches.of_plain(plain["batches"])
        self.rows = {name: RowsRecord(**{**known, "tile_digests": ()}) for name, known in plain["rows"].items()}
        self.batches, self.samples, self.shared = BatchLog(batches), int(batches.samples.sum()), plain["shared"]
        self._require_first_pass(batches, whole=ended)

    def plain(self, first: int = 0) -> dict[str, Any]:
        """Return all of it in plain values, of the batches those from number `first` on."""
        return {
            "batches": self.batches.batches[first:].plain(),
            "rows": {name: plain_fields(rows) for name, rows in self.rows.items()},
            "shared": None if self.shared is None else dict(self.shared),
        }

    def record(self) -> DomainRecord:
        """Return what a store records of a pass that is complete: all but the rows."""
        return DomainRecord(
            complete=True, batches=self.batches.batches, layers=dict(self.rows), shared=self.shared or {}
        )

    def own_rows(self, batch: RowBatch) -> Iterator[tuple[str, Rows]]:
        """Yield each layer whose rows are its own, with those of the next batch, and count them.

        Raises InvalidInputError where they are not as in the batches before.
        """
        if not batch.samples:
            return
        self.shared = shared_rows(batch, self.shared)
        for name in (name for name in batch.rows if name not in self.shared):
            rows, known = batch.rows[name], self.rows.get(name)
            per_sample = rows_per_sample(name, batch, None if known is None else known.rows_per_sample)
            if known is None:
                known = RowsRecord(rows.shape[1], self._to_host(rows[:0]).dtype.name, per_sample)
            self.rows[name] = known
            yield name, rows
            self.rows[name] = dataclasses.replace(known, rows=known.rows + rows.shape[0])

    def complete(self, first: int, theirs: Batches) -> None:
        """Take the digests of the batches from number `first` on that this process did not load and another did."""
        so_far = self.batches.batches
        if so_far[first:].unseen.any():
            more = so_far[first:].completed(theirs)
            self._require_first_pass(more, after=first)
            self.batches = BatchLog(Batches.joined([so_far[:first], more]))

    def add_rows(self, rank: int, plain: Mapping[str, Any]) -> None:
        """Count the rows that another rank folded, as its `plain` has them.

        Raises InvalidInputError where they are not of the kind of those before.
        """
        if plain["shared"] is not None:
            if self.shared is not None and dict(self.shared) != plain["shared"]:
                raise InvalidInputError(
                    f"ranks: layers that read one tensor on rank 0 do not on rank {rank}: give every rank the same "
                    "network, or watch them in separate runs"
                )
            self.shared = plain["shared"]
        for name, theirs in plain["rows"].items():
            more = RowsRecord(**{**theirs, "tile_digests": ()})
            known = self.rows.get(name, dataclasses.replace(more, rows=0))
            if dataclasses.replace(more, rows=known.rows) != known:
                raise InvalidInputError(
                    f"layer '{name}': gives {_kind(more)} on rank {rank} and {_kind(known)} on the ranks before: give "
                    "every rank the same network and batches"
                )
            self.rows[name] = dataclasses.replace(known, rows=known.rows + more.rows)

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Compare a batch to the one folded before under its number; True where it need not be run again."""
        if self._first_pass:
            self._require_first_pass(Batches.of([BatchRecord(samples, digest)]), after=batch)
        if batch >= len(self.batches):
            return False
        known = self.batches[batch]
        if (known.samples, known.digest) != (samples, digest):
            raise FingerprintMismatchError(
                f"batch {batch} is not the one folded before the run was stopped ({known.samples} samples, digest "
                f"{known.digest[:12]}; now {samples}, {digest[:12]}): restore the data, their order, augmentation and "
                "batch size, or delete the store's folder 'unfinished' to start over"
            )
        self._passed = batch + 1
        return True

    def append(self, samples: int, digest: str) -> None:
        """Take note of the next batch."""
        self.batches.append(BatchRecord(samples, digest))
        self.samples += samples
        self._passed += 1

    def require_whole(self) -> None:
        """Raise FingerprintMismatchError where the loader ended before the batches that were folded before."""
        self._require_first_pass(Batches(), after=self._passed, whole=True)
        if self._passed < len(self.batches):
            raise FingerprintMismatchError(
                f"{len(self.batches)} batches were folded before the run was stopped, and now the loader ended after "
                f"{self._passed}: restore the data, or delete the store's folder 'unfinished' to start over"
            )

    def _require_first_pass(self, batches: Batches, *, after: int = 0, whole: bool = False) -> None:
        """Compare batches from number `after` on with those of the first pass; `whole`: none may be left over."""
        if not self._first_pass:
            return
        stop = len(self._first_pass) if whole else after + len(batches)
        if self._first_pass[after:stop].differ(batches) is not None:
            raise FingerprintMismatchError(
                "the layers are folded in several passes, and one of them has other batches than the first (from batch "
                f"{after} on): turn off shuffling and random augmentation, or raise the memory limit so that one pass "
                "is enough; where the data changed since the run was stopped, restore them, or delete the store's "
                "folder 'unfinished' to start over"
            )


def _kind(rows: RowsRecord) -> str:
    return f"{rows.rows_per_sample or 'varying'} rows a sample of {rows.features} features in {rows.dtype}"


class Logged:
    """What every sink that folds says of its pass."""

    _log: PassLog

    @property
    def batches(self) -> BatchLog:
        """Every batch folded so far, by any rank, also in the runs before this one."""
        return self._log.batches

    @property
    def held(self) -> Sequence[int]:
        """Samples of each batch folded before."""
        counts: list[int] = self.batches.batches.samples.tolist()
        return counts

    def record(self) -> DomainRecord:
        """Return what is known of the rows that were folded: all but the rows."""
        return self._log.record()
