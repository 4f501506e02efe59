"""Batches of rows cut into tiles, and the protocol of a sink that takes them.

    batches --Tiler--> tiles

Tile t holds rows t T to (t + 1) T, with T from `tile_rows(d)`: where the borders fall is a function of the width alone,
however the rows were batched. A row carries the number of the sample it came from, counted over the whole domain, so
that samples can be kept apart and counted even where each gives another number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.share import Share

Rows = NDArray[np.generic]
Samples = NDArray[np.int64]

MAX_TILE_BYTES = 32 * 2**20
MIN_TILE_ROWS, MAX_TILE_ROWS = 256, 4096
"""256 rows keep a rank-k update near full BLAS speed; 4096 keep the padding of a nearly empty tile small."""
_FOUR_BYTES = 4

VARYING = 0
"""In place of a number of rows per sample: samples give as many as they have."""


def tile_rows(features: int) -> int:
    """Return T, the rows of a tile: a power of two, 32 MiB of float32 at most, 256 rows at least."""
    rows = MAX_TILE_ROWS
    while rows > MIN_TILE_ROWS and rows * features * _FOUR_BYTES > MAX_TILE_BYTES:
        rows //= 2
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Consecutive rows of one layer on one domain."""

    number: int
    rows: Rows
    """(n, d), n <= T."""
    samples: Samples
    """(n,): the sample each row came from; never descending."""
    begins: NDArray[np.bool_]
    """(n,): whether the row is its sample's first."""

    @classmethod
    def of(cls, number: int, rows: Rows, samples: Samples, before: int) -> Tile:
        """Make a tile; `before` is the sample of the row that precedes it, -1 for the first."""
        return cls(number, rows, samples, np.diff(samples, prepend=before) != 0)


class Tiler:
    """Cuts a stream of row batches into tiles of exactly T rows; the last one may be shorter."""

    def __init__(
        self,
        height: int,
        *,
        first_tile: int = 0,
        sample_before: int = -1,
        join: Callable[[Sequence[Any]], Any] = np.concatenate,
        stack: Callable[[Sequence[Any]], Any] | None = None,
    ) -> None:
        """`sample_before` is the sample of the row before the first tile; `join` concatenates rows.

        `stack` makes a tile's rows of those of several batches, `join` where it is not named.
        """
        self._height = height
        self._next_tile = first_tile
        self._before = sample_before
        self._join = join
        self._stack = stack or join
        self._rows: list[Rows] = []
        self._samples: list[Samples] = []
        self._pending = 0

    def push(self, rows: Rows, samples: Samples) -> Iterator[Tile]:
        """Take rows (n, d), n >= 0, and the sample of each; yield each tile that is now full.

        What is left of a batch is copied, so that it does not keep the whole of it in memory.
        """
        whole = rows.shape[0]
        while rows.shape[0]:
            room = self._height - self._pending
            self._hold(rows[:room], samples[:room])
            rows, samples = rows[room:], samples[room:]
            if self._pending == self._height:
                yield self._take()
        if 0 < self._pending < whole:
            self._rows = [self._join(self._rows)]

    def flush(self) -> Iterator[Tile]:
        """Yield the rest, where there is one."""
        if self._pending:
            yield self._take()

    def pending(self) -> tuple[Rows, Samples] | None:
        """Return the rows that fill no tile yet and their samples, or None where there are none."""
        return (self._join(self._rows), np.concatenate(self._samples)) if self._pending else None

    @property
    def next_tile(self) -> int:
        """Number of the tile that is being filled."""
        return self._next_tile

    @property
    def sample_before(self) -> int:
        """Sample of the last row of the tile before it, -1 where there is none."""
        return self._before

    def _hold(self, rows: Rows, samples: Samples) -> None:
        self._rows.append(rows)
        self._samples.append(samples)
        self._pending += rows.shape[0]

    def _take(self) -> Tile:
        rows = self._rows[0] if len(self._rows) == 1 else self._stack(self._rows)
        tile = Tile.of(self._next_tile, rows, np.concatenate(self._samples), self._before)
        self._before, self._next_tile = int(tile.samples[-1]), self._next_tile + 1
        self._rows, self._samples, self._pending = [], [], 0
        return tile


@dataclass(frozen=True, slots=True)
class RowBatch:
    """One batch on its way from the network to a sink."""

    samples: int
    digest: str
    """Of the network's input, so that another order or another augmentation is noticed on resume."""
    rows: Mapping[str, Rows]
    """Layer name -> (n, d); empty where the batch has no samples."""
    counts: Mapping[str, Samples] = field(default_factory=dict)
    """Layer name -> (samples,): rows of each sample, where they may differ; the same number each for other layers."""

    def sample_numbers(self, layer: str, first: int) -> Samples:
        """(n,): the sample each row of a layer came from, where the batch begins with sample number `first`."""
        numbers = np.arange(first, first + self.samples, dtype=np.int64)
        counts = self.counts.get(layer)
        return np.repeat(numbers, self.rows[layer].shape[0] // self.samples if counts is None else counts)

    @property
    def shared(self) -> dict[str, str]:
        """Layers that read what an earlier layer reads, and have its very rows; layer name -> the earlier one's."""
        return same_as_before(self.rows)


def same_as_before(named: Mapping[str, object]) -> dict[str, str]:
    """Map each name to the earliest name bound to the same object, where that is another."""
    first: dict[int, str] = {}
    earliest = {name: first.setdefault(id(thing), name) for name, thing in named.items()}
    return {name: earlier for name, earlier in earliest.items() if earlier != name}


class RowSink(Protocol):
    """Where captured rows go: a store, a fold, or both."""

    @property
    def held(self) -> Sequence[int]:
        """Samples of each batch that is stored in full, in order: a loader that can skip may begin after them.

        `skip` is then called for the last of them first.
        """

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Tell whether batch number `batch` is stored in full, so that the network need not see it again.

        Raises FingerprintMismatchError where it is here but came from another input.
        """

    def write(self, batch: RowBatch) -> None:
        """Take the next batch."""

    def finish(self) -> None:
        """Note that this was the last batch."""


class ProbedSink(RowSink, Protocol):
    """A sink that may also compare what the network gives for a probe with what it gave before."""

    @property
    def probed(self) -> Callable[[Probe], None] | None:
        """What the probe is given to; None where there is nothing to compare it with."""


@runtime_checkable
class ComparingSink(Protocol):
    """A sink that may be the only one that will ever see its batches."""

    @property
    def compares(self) -> bool:
        """Whether batches are compared with others, of an earlier run or a pass to come: else they need no digests."""


@runtime_checkable
class SharingSink(Protocol):
    """A sink that several processes send rows to, each those of its share of the batches."""

    @property
    def share_from(self) -> Callable[[int], Share] | None:
        """What this process loads of the batches from a number on; None where it loads all."""


def shared_rows(batch: RowBatch, before: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return which layers' rows are another's and need not be kept again: `before`, or what this first batch shows.

    Raises InvalidInputError where it held in the batches before and no longer does.
    """
    if before is None:
        return batch.shared
    for name, first in before.items():
        if batch.rows[name] is not batch.rows[first]:
            raise InvalidInputError(
                f"layers '{first}' and '{name}': read the same tensor in earlier batches, and their rows were kept "
                "once; in this batch they do not: watch them in separate captures, each to a store of its own"
            )
    return before


def rows_per_sample(layer: str, batch: RowBatch, before: int | None) -> int:
    """Return the rows that one sample of `batch` gave in `layer`, or `VARYING`.

    Raises InvalidInputError where `before`, the number so far, differs.
    """
    rows = int(batch.rows[layer].shape[0])
    counts = batch.counts.get(layer)
    if counts is not None:
        if counts.shape != (batch.samples,) or int(counts.sum()) != rows or counts.min() < 0:
            raise InvalidInputError(f"layer '{layer}': counts must add up to its {rows} rows, got {counts.tolist()}")
        here, rest = VARYING, 0
        if before and (counts == before).all():  # as a store of an earlier version began
            here = before
    else:
        here, rest = divmod(rows, batch.samples)
        if rows == 0:
            raise InvalidInputError(f"layer '{layer}': every sample must give a row, {batch.samples} samples gave none")
        here = VARYING if before == VARYING else here
    if rest or before not in (None, here):
        raise InvalidInputError(
            f"layer '{layer}': every sample must give the same number of rows, {batch.samples} samples gave {rows}"
            + ("" if before is None else f" and earlier ones {before or 'as many as they have'} each")
            + ": pad the samples to one length and name the padding with a mask"
        )
    return here
