"""Tiles to moments, in an order that no scheduler can change.

    tiles --LaneFold--> lanes --merge_all--> Moments (training, held-out)

Floating-point addition is not associative, so the order of additions is part of the result. Here it is a function of
the rows alone: tile t is folded by lane t mod L with L from `lane_count(d)`, a lane folds its tiles in ascending
order, and lanes merge in a fixed pairwise tree. However the rows were batched, whoever folded which lane, interrupted
or not: the same rows give the same bits. A wide layer has one lane, whose scatter matrix may be folded in strips, by
several workers or one after the other: a strip has the bits of those rows of the whole.

A `FoldState` is the one mutable thing of the package's mathematics, and it is changed by its fold alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.numerics.linalg.precision import Precision, scaled
from dalr_stream.numerics.linalg.rank_k import add_rank_k, add_rank_k_single, add_rank_one, mirror_lower
from dalr_stream.numerics.rows.tiling import Rows, Tile
from dalr_stream.numerics.statistics.centring import (
    RUN_ROWS,
    Chosen,
    Run,
    centre,
    describe_non_finite,
    rows_in,
    runs_of,
)
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip, product_rows
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.moments import Moments, pooled_mean, require_finite_sums
from dalr_stream.numerics.types import Matrix, Vector


@dataclass(frozen=True, slots=True)
class SplitMoments:
    """Moments of the training rows and of the held-out rows; the latter have count 0 where none are held out."""

    training: Moments
    heldout: Moments
    shards: tuple[Moments, ...] = ()
    """What `training` is the sum of, where that was asked for; a sum with other moments keeps none."""

    def __add__(self, other: SplitMoments) -> SplitMoments:
        """Add part by part."""
        return SplitMoments(self.training + other.training, self.heldout + other.heldout)


@dataclass(slots=True, eq=False)
class FoldState:
    """What a fold has summed up so far: changed in place by the fold, saved as it is by a checkpoint."""

    count: int
    samples: int
    mean: Vector
    """(d,), or the first `stop` features for a strip that ends there; so are the other vectors."""
    scatter: Matrix
    """(h, d): the last h rows of the lower triangle; the rest of these rows holds nothing that is used."""
    maximum: Vector
    minimum: Vector
    nonzero: NDArray[np.int64]

    @classmethod
    def empty(cls, strip: Strip) -> FoldState:
        """Nothing summed up yet; the matrix takes no memory before there is."""
        d = strip.stop
        nothing = np.full(d, np.inf)
        scatter = np.broadcast_to(np.zeros(()), (d - strip.first, d))
        return cls(0, 0, np.zeros(d), scatter, -nothing, nothing, np.zeros(d, np.int64))

    def __add__(self, other: FoldState) -> FoldState:
        """Both sets of rows together, of the same strip: to the bit what `Moments.__add__` gives there."""
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        n = self.count + other.count
        delta = self.mean - other.mean
        scatter = self.scatter + other.scatter
        with np.errstate(over="ignore", invalid="ignore"):  # the record made of it refuses what overflowed
            add_rank_one(scatter, self.count * other.count / n, delta[-len(scatter) :], delta)
        return FoldState(
            n,
            self.samples + other.samples,
            pooled_mean(self.count, self.mean, other.count, other.mean),
            scatter,
            np.maximum(self.maximum, other.maximum),
            np.minimum(self.minimum, other.minimum),
            self.nonzero + other.nonzero,
        )

    def rows(self, strip: Strip) -> FoldState:
        """View a strip of the matrix that lies within this one."""
        first, to = self.mean.size - len(self.scatter), slice(strip.stop)
        scatter = self.scatter[strip.first - first : strip.stop - first, to]
        vectors = self.maximum[to], self.minimum[to], self.nonzero[to]
        return FoldState(self.count, self.samples, self.mean[to], scatter, *vectors)

    def moments(self) -> Moments:
        """Return the moments; the state's memory becomes theirs, so nothing is copied and the fold must end."""
        if self.scatter.shape[0] != self.mean.size:
            raise InvalidInputError(f"a strip of {self.scatter.shape} is not a whole matrix: join all of them")
        if self.count == 0:
            return Moments.empty(self.mean.size)
        mirror_lower(self.scatter)
        max_abs = np.maximum(np.abs(self.maximum), np.abs(self.minimum))
        return Moments(self.count, self.samples, self.mean, self.scatter, max_abs, self.maximum, self.nonzero)


def join_strips(states: Sequence[FoldState]) -> FoldState:
    """Join the strips of one matrix, in ascending order, into the state of the whole; one alone is not copied."""
    last = states[-1]
    if len(states) == 1:
        return last
    d = last.mean.size
    scatter = np.empty((d, d))
    for state in states:
        h, stop = state.scatter.shape
        scatter[stop - h : stop, :stop] = state.scatter
    return FoldState(last.count, last.samples, last.mean, scatter, last.maximum, last.minimum, last.nonzero)


class Fold(Protocol):
    """Folds rows into a state, wherever the activations are."""

    def update(self, rows: Rows, samples: int, chosen: Chosen | None = None) -> None:
        """Fold `rows` (n, d), or those of the `chosen` numbers, in which `samples` samples begin.

        Raises NonFiniteError at NaN or Inf, which ends the fold: some of the rows may have been added by then.
        """

    def state(self) -> FoldState:
        """Return what is summed up so far, in this process's memory; not to be changed while the fold goes on."""


class Workspace:
    """Memory that folds take turns in: those of one thread share one, so it is counted once."""

    def __init__(self) -> None:
        self._memory = np.empty(0)

    def matrix(self, n: int, d: int) -> Matrix:
        """(n, d) float64, of unknown contents; what was handed out before is overwritten."""
        if self._memory.size < n * d:
            self._memory = np.empty(0)  # before the new one: two at once is what this class is against
            self._memory = np.empty(n * d)
        return self._memory[: n * d].reshape(n, d)


NewFold = Callable[[FoldState, Workspace, Executor | None, Precision], Fold]
"""Goes on from a state, which it owns from then on."""


class CpuFold:
    """The reference fold: float64, centred rank-k updates in place; float32 products where asked for.

    A product takes a tile, or `product_rows` of it. The rank-one terms that join a run to its product's other rows, and
    these to what came before, ride along as rows of the same BLAS call: sqrt(r) (mean of the run - mean_p), and
    sqrt(n n_p / (n + n_p)) (mean_p - mean). Memory: d^2 doubles and the rows of one product in float64.
    """

    def __init__(
        self,
        state: FoldState,
        workspace: Workspace,
        executor: Executor | None = None,
        precision: Precision = Precision.DOUBLE,
    ) -> None:
        self._state = state
        self._workspace = workspace
        self._executor = executor
        self._precision = precision

    def update(self, rows: Rows, samples: int, chosen: Chosen | None = None) -> None:
        """Fold `rows` (n, d), or the `chosen` of them; NonFiniteError at NaN or Inf, which ends the fold."""
        runs = runs_of(rows.shape[0], chosen)
        at_once = product_rows(rows.shape[1]) // RUN_ROWS
        for first in range(0, len(runs), at_once):
            self._fold(rows, runs[first : first + at_once])
        self._state.samples += samples

    def _fold(self, rows: Rows, runs: Sequence[Run]) -> None:
        """Fold the rows of some runs by one product."""
        state, n = self._state, rows_in(runs)
        centred = self._workspace.matrix(n + len(runs) + 1, state.mean.size)
        centring = centre(rows, runs, centred[:-1], self._executor)
        mean = centring.mean
        if not np.isfinite(mean).all():
            whole = np.asarray(rows)[:, : state.mean.size]
            described = describe_non_finite(np.concatenate([whole[run] for run in runs]))
            raise NonFiniteError(f"activations must be finite, got {described}")
        if not state.scatter.flags.writeable:  # of an empty state: a lane without a tile needs none
            state.scatter = np.zeros(state.scatter.shape)
        if state.count:
            centred[-1] = np.sqrt(state.count * n / (state.count + n)) * (mean - state.mean)
        else:
            centred = centred[:-1]
        if self._precision is Precision.SINGLE:
            add_rank_k_single(state.scatter, scaled(centred), self._executor)
        else:
            add_rank_k(state.scatter, centred, self._executor)
        h, d = state.scatter.shape
        require_finite_sums(state.scatter.diagonal(d - h), "activations")
        state.mean = pooled_mean(state.count, state.mean, n, mean) if state.count else mean
        state.count += n
        np.maximum(state.maximum, centring.maximum, out=state.maximum)
        np.minimum(state.minimum, centring.minimum, out=state.minimum)
        state.nonzero += centring.nonzero

    def state(self) -> FoldState:
        """Return the accumulator itself."""
        return self._state


@dataclass(frozen=True, slots=True)
class LaneState:
    """What a lane has summed up; `heldout` is None where nothing is held out."""

    training: FoldState
    heldout: FoldState | None

    @classmethod
    def empty(cls, rule: FoldRule, strip: Strip | None = None) -> LaneState:
        """Nothing summed up yet; of the whole matrix where no strip is named."""
        strip = strip or Strip(0, rule.features)
        return cls(FoldState.empty(strip), FoldState.empty(strip) if rule.parts == 2 else None)

    def __add__(self, other: LaneState) -> LaneState:
        """Both sets of rows together, part by part."""
        heldout = None
        if self.heldout is not None and other.heldout is not None:
            heldout = self.heldout + other.heldout
        return LaneState(self.training + other.training, heldout)

    def rows(self, strip: Strip) -> LaneState:
        """View a strip of both."""
        return LaneState(self.training.rows(strip), None if self.heldout is None else self.heldout.rows(strip))

    def moments(self) -> SplitMoments:
        """Return both records; the state's memory becomes theirs."""
        training = self.training.moments()
        heldout = Moments.empty(training.features) if self.heldout is None else self.heldout.moments()
        return SplitMoments(training, heldout)


class LaneFold:
    """One lane: its tiles in ascending order, split into training and held-out rows; or one partition alone."""

    def __init__(
        self,
        rule: FoldRule,
        executor: Executor | None = None,
        *,
        state: LaneState | None = None,
        workspace: Workspace | None = None,
        new_fold: NewFold = CpuFold,
        partition: int | None = None,
    ) -> None:
        """`state` is where an earlier fold of the same lane stopped; lanes of one thread may share a workspace.

        `partition` is the one of `rule.partitions` whose rows are folded, as if they were the training rows.
        """
        if partition not in rule.partitions:
            raise InvalidInputError(
                f"a rule with {rule.shards} shards folds one of {rule.partitions} at a time, got {partition}"
            )
        state, workspace = state or LaneState.empty(rule), workspace or Workspace()
        self._holdout, self._shards, self._partition = rule.holdout, rule.shards, partition
        self._training = new_fold(state.training, workspace, executor, rule.precision)
        self._heldout = None if state.heldout is None else new_fold(state.heldout, workspace, executor, rule.precision)

    def update(self, tile: Tile) -> None:
        """Fold the lane's next tile."""
        if self._partition is not None:
            own = self._holdout.assign(tile.samples, self._shards) == self._partition
            self._training.update(tile.rows, int((tile.begins & own).sum()), np.flatnonzero(own))
            return
        if self._heldout is None:
            self._training.update(tile.rows, int(tile.begins.sum()))
            return
        heldout = self._holdout.mask(tile.samples)
        for fold, part in ((self._training, ~heldout), (self._heldout, heldout)):
            fold.update(tile.rows, int((tile.begins & part).sum()), np.flatnonzero(part))

    def state(self) -> LaneState:
        """Return what is summed up so far; see `Fold.state`."""
        return LaneState(self._training.state(), None if self._heldout is None else self._heldout.state())

    def freeze(self) -> SplitMoments:
        """Return both records and give up the accumulators."""
        return self.state().moments()


def join_partitions(rule: FoldRule, partitions: Sequence[SplitMoments]) -> SplitMoments:
    """Join what was folded for each of `rule.partitions`; with shards, training is their sum in the fixed tree."""
    if rule.shards == 1:
        return partitions[0]
    records = [partition.training for partition in partitions]
    shards = tuple(records[: rule.shards])
    heldout = records[-1] if rule.holdout.share else Moments.empty(rule.features)
    return SplitMoments(merge_all(shards), heldout, shards)
