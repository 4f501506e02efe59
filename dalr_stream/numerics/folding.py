"""Rows to moments, a tile at a time, in an order that no scheduler can change.

    batches --Tiler--> tiles --LaneFold--> lanes --merge_all--> Moments (training, held-out)

Floating-point addition is not associative, so the order of additions is part of the result. Here it is a function of
the rows alone: tile t holds rows t T to (t + 1) T with T from `tile_rows(d)`, it is folded by lane t mod L with L
from `lane_count(d)`, a lane folds its tiles in ascending order, and lanes merge in a fixed pairwise tree. However the
rows were batched, whoever folded which lane, interrupted or not: the same rows give the same bits.

A lane is the one mutable thing of the package's mathematics, and it never leaves its fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.moments import Moments, centre, describe_non_finite, pooled_mean
from dalr_stream.numerics.rank_k import add_rank_k, mirror_lower

Rows = NDArray[np.generic]

MAX_TILE_BYTES = 32 * 2**20
MIN_TILE_ROWS, MAX_TILE_ROWS = 256, 4096
"""256 rows keep a rank-k update near full BLAS speed; 4096 keep the padding of a nearly empty tile small."""
_FOUR_BYTES = 4


def tile_rows(features: int) -> int:
    """Return T, the rows of a tile: a power of two, 32 MiB of float32 at most, 256 rows at least."""
    rows = MAX_TILE_ROWS
    while rows > MIN_TILE_ROWS and rows * features * _FOUR_BYTES > MAX_TILE_BYTES:
        rows //= 2
    return rows


def lane_count(features: int) -> int:
    """Return L, the lanes of a fold: 8 while accumulators are small, 1 where column blocks keep the cores busy."""
    if features <= 1024:
        return 8
    return 4 if features <= 2048 else 1


@dataclass(frozen=True, slots=True)
class HoldoutRule:
    """Which samples are kept apart as held-out: a hash of seed and sample number, so any order agrees.

    `share` lies in [0, 1); 0 keeps nothing apart.
    """

    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise InvalidInputError(f"heldout_share must lie in [0, 1), got {self.share}")

    def mask(self, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return True for each held-out sample number."""
        return _uniform_hash(samples, self.seed) < self.share


@dataclass(frozen=True, slots=True)
class FoldRule:
    """All that decides the bits of a layer's moments, besides the rows."""

    features: int
    rows_per_sample: int = 1
    holdout: HoldoutRule = HoldoutRule()

    @property
    def tile_rows(self) -> int:
        """T."""
        return tile_rows(self.features)

    @property
    def lanes(self) -> int:
        """L."""
        return lane_count(self.features)


@dataclass(frozen=True, slots=True)
class SplitMoments:
    """Moments of the training rows, and of the rows kept apart; the latter have count 0 where none were."""

    training: Moments
    heldout: Moments

    def __add__(self, other: SplitMoments) -> SplitMoments:
        """Add part by part."""
        return SplitMoments(self.training + other.training, self.heldout + other.heldout)


class Fold(Protocol):
    """Folds one lane's tiles, in place, wherever the activations are."""

    def update(self, rows: Rows, samples: int) -> None:
        """Fold `rows` (n, d), in which `samples` samples begin."""

    def freeze(self) -> Moments:
        """Return the moments and give up the accumulator."""


class CpuFold:
    """The reference fold: float64, one centred rank-k update a tile, in place.

    The rank-one term that joins a tile to what came before rides along as one more row of the same BLAS call:
    sqrt(n n_t / (n + n_t)) (mean_t - mean). Memory: d^2 doubles and one tile in float64.
    """

    def __init__(self, features: int, executor: Executor | None = None) -> None:
        self._executor = executor
        self._count = 0
        self._samples = 0
        self._mean = np.zeros(features)
        self._scatter = np.zeros((features, features))
        self._max = np.full(features, -np.inf)
        self._min = np.full(features, np.inf)
        self._nonzero = np.zeros(features, np.int64)
        self._buffer = np.empty((0, features))

    def update(self, rows: Rows, samples: int) -> None:
        """Fold `rows` (n, d); raises NonFiniteError, with nothing folded, where one holds NaN or Inf."""
        n = rows.shape[0]
        if n == 0:
            return
        if self._buffer.shape[0] <= n:
            self._buffer = np.empty((n + 1, rows.shape[1]))
        mean, _ = centre(rows, out=self._buffer[:n])
        if not np.isfinite(mean).all():
            raise NonFiniteError(f"activations must be finite, got {describe_non_finite(rows)}")
        used = n
        if self._count:
            self._buffer[n] = np.sqrt(self._count * n / (self._count + n)) * (mean - self._mean)
            used = n + 1
        add_rank_k(self._scatter, self._buffer[:used], self._executor)
        self._mean = pooled_mean(self._count, self._mean, n, mean) if self._count else mean
        self._count += n
        self._samples += samples
        np.maximum(self._max, rows.max(axis=0), out=self._max)
        np.minimum(self._min, rows.min(axis=0), out=self._min)
        self._nonzero += np.count_nonzero(rows, axis=0)

    def freeze(self) -> Moments:
        """Return the moments; the accumulator's memory becomes theirs, so nothing is copied."""
        if self._count == 0:
            return Moments.empty(self._mean.size)
        mirror_lower(self._scatter)
        max_abs = np.maximum(np.abs(self._max), np.abs(self._min))
        record = Moments(self._count, self._samples, self._mean, self._scatter, max_abs, self._max, self._nonzero)
        del self._scatter, self._buffer
        return record


class LaneFold:
    """One lane: its tiles in ascending order, split into training and held-out rows."""

    def __init__(self, rule: FoldRule, executor: Executor | None = None) -> None:
        self._rule = rule
        self._training: Fold = CpuFold(rule.features, executor)
        self._heldout: Fold | None = CpuFold(rule.features, executor) if rule.holdout.share else None

    def update(self, tile: int, rows: Rows) -> None:
        """Fold tile number `tile`."""
        numbers = np.arange(rows.shape[0], dtype=np.int64) + tile * self._rule.tile_rows
        begins = numbers % self._rule.rows_per_sample == 0
        if self._heldout is None:
            self._training.update(rows, int(begins.sum()))
            return
        apart = self._rule.holdout.mask(numbers // self._rule.rows_per_sample)
        self._training.update(rows[~apart], int((begins & ~apart).sum()))
        self._heldout.update(rows[apart], int((begins & apart).sum()))

    def freeze(self) -> SplitMoments:
        """Return both records and give up the accumulators."""
        heldout = Moments.empty(self._rule.features) if self._heldout is None else self._heldout.freeze()
        return SplitMoments(self._training.freeze(), heldout)


def merge_all(records: Iterable[SplitMoments]) -> SplitMoments:
    """Add up records in a fixed pairwise tree: ((0 + 1) + (2 + 3)) + ((4 + 5) + ...

    The records are taken one at a time and added as soon as the tree allows, as a binary counter carries: of r records
    that are made on the way, at most log2(r) + 2 are held.
    """
    subtrees: list[tuple[int, SplitMoments]] = []
    for record in records:
        size, total = 1, record
        while subtrees and subtrees[-1][0] == size:
            total = subtrees.pop()[1] + total
            size *= 2
        subtrees.append((size, total))
    if not subtrees:
        raise InvalidInputError("merge_all: needs at least one record")
    _, total = subtrees.pop()
    while subtrees:
        total = subtrees.pop()[1] + total
    return total


class Tiler:
    """Cuts a stream of row batches into tiles of exactly T rows; the last one may be shorter."""

    def __init__(self, height: int, first_tile: int = 0) -> None:
        self._height = height
        self._next_tile = first_tile
        self._pending: list[Rows] = []
        self._pending_rows = 0

    def push(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Take a batch (n, d), n >= 0; yield (tile number, tile) for each tile that is now full."""
        while rows.shape[0]:
            taken = rows[: self._height - self._pending_rows]
            rows = rows[taken.shape[0] :]
            self._pending.append(taken)
            self._pending_rows += taken.shape[0]
            if self._pending_rows == self._height:
                yield self._take()

    def flush(self) -> Iterator[tuple[int, Rows]]:
        """Yield the rest, where there is one."""
        if self._pending_rows:
            yield self._take()

    def _take(self) -> tuple[int, Rows]:
        tile = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        number, self._next_tile = self._next_tile, self._next_tile + 1
        self._pending, self._pending_rows = [], 0
        return number, tile


@dataclass(frozen=True, slots=True)
class RowBatch:
    """One batch on its way from the network to a sink."""

    samples: int
    digest: str
    """Of the network's input, so that another order or another augmentation is noticed on resume."""
    rows: Mapping[str, Rows]
    """Layer name -> (n, d); empty where the batch has no samples."""


class RowSink(Protocol):
    """Where captured rows go: a store, a fold, or both."""

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Tell whether batch number `batch` is already here whole, so that the network need not see it again.

        Raises FingerprintMismatchError where it is here but came from another input.
        """

    def write(self, batch: RowBatch) -> None:
        """Take the next batch."""

    def finish(self) -> None:
        """Take note that this was the last batch."""


def rows_per_sample(layer: str, batch: RowBatch, before: int | None) -> int:
    """Return the rows that one sample of `batch` gave in `layer`; raises InvalidInputError where `before` differs."""
    rows = int(batch.rows[layer].shape[0])
    here, rest = divmod(rows, batch.samples)
    if rows == 0:
        raise InvalidInputError(f"layer '{layer}': every sample must give a row, {batch.samples} samples gave none")
    if rest or before not in (None, here):
        raise InvalidInputError(
            f"layer '{layer}': every sample must give the same number of rows, {batch.samples} samples gave {rows}"
            + ("" if before is None else f" and earlier ones {before} each")
            + ": pad the samples to one length"
        )
    return here


def _uniform_hash(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Map integers to [0, 1), seeded (splitmix64; Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) + np.uint64(1)
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
