"""Choose a ridge by its error on unseen rows: the best of a stated grid.

A ridge is scored by the error it leaves on unseen rows, ||Y - Yhat|| / ||Y - b||, at one rank or averaged over every
rank that saves parameters. Unseen rows are held-out ones, or each shard for the solution without it. Held-out rows that
chose a ridge are no longer unseen, and the choice says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np

from dalr_stream.errors import FewSamplesWarning, InvalidInputError, OutlierFeaturesWarning
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.methods import DalrOptions, Variant
from dalr_stream.numerics.resampling.jackknife import leave_one_out, nonempty_shards
from dalr_stream.numerics.sizes.losses import lost_nats, outputs_energy, relative, squared_errors
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.types import Vector

GRID = tuple(10.0**power for power in range(-6, 2))
"""Relative ridges 1e-6 to 10, a decade apart: errors change little within a decade, and each ridge is a solution."""

M = TypeVar("M", bound=InputMoments)


@dataclass(frozen=True, slots=True)
class RidgeChoice:
    """A ridge and what it was judged by."""

    ridge: Ridge
    grid: tuple[float, ...]
    """Relative ridges that were tried, ascending."""
    errors: tuple[float, ...]
    """What each leaves on the rows it was judged by."""
    judged_by: str
    """Which rows, and at which ranks."""

    @property
    def sweep(self) -> tuple[tuple[float, float], ...]:
        """Ridges and errors, pair by pair: how `Diagnostics` keeps them."""
        return tuple(zip(self.grid, self.errors, strict=True))

    @property
    def note(self) -> str:
        """The choice in words."""
        edge = {self.grid[0]: "the smallest tried", self.grid[-1]: "the largest tried"}.get(self.ridge.value)
        return (
            f"relative ridge {self.ridge.value:g}{f', {edge},' if edge else ''} chosen among {len(self.grid)} from "
            f"{self.grid[0]:g} to {self.grid[-1]:g} by {self.judged_by}: {min(self.errors):.4f}"
        )


@overload
def choose_ridge(
    solve: Layer,
    *,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    rank: int | None = None,
    grid: Iterable[float] = GRID,
) -> RidgeChoice: ...
@overload
def choose_ridge(
    solve: Callable[[M, Ridge], Factors],
    training: M | None = None,
    *,
    heldout: M | None = None,
    shards: Sequence[M] | None = None,
    gradients: InputMoments | None = None,
    rank: int | None = None,
    grid: Iterable[float] = GRID,
) -> RidgeChoice: ...
def choose_ridge(  # noqa: PLR0913  # two forms, of a layer and of moments alone
    solve: Layer | Callable[[M, Ridge], Factors],
    training: M | None = None,
    *,
    heldout: M | None = None,
    shards: Sequence[M] | None = None,
    gradients: InputMoments | None = None,
    variant: Variant | str = Variant.ANCHORED,
    affine: bool | None = None,
    rank: int | None = None,
    grid: Iterable[float] = GRID,
) -> RidgeChoice:
    """Return the ridge of `grid` with the least error on unseen rows; of equal ones the largest.

    Parameters
    ----------
    solve
        A `Layer`, solved by `dalr` in the given `variant` and form: judged by its held-out rows where it has some, else
        by its shards. Or moments and ridge to factors: `lambda moments, ridge: ds.dalr(weight, bias, moments,
        ridge=ridge)`.
    training, heldout
        Solve from `training` and judge by `heldout`: an error reported on those rows afterwards is a little too small.
    shards
        In place of the two: solve without each shard and judge by it, all shards together.
    gradients
        Moments of the gradients by the outputs: the ridge is judged by what the loss feels of the errors. A `Layer`
        brings them for `weighted`.
    variant, affine
        Of `dalr`, where a layer is given.
    rank
        Judge at this rank; by default by the mean error over ranks 1 to the break-even rank.
    grid
        Relative ridges >= 0.

    Returns
    -------
    RidgeChoice
        `.ridge`, and the error at every ridge of the grid.

    Raises
    ------
    InvalidInputError
        For an empty grid, an impossible rank, and unless judged by exactly one kind of rows.

    See Also
    --------
    dalr_sweep : the solutions at several ridges.

    Notes
    -----
    Cost: one solution per ridge; with g shards, g of them.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> training, heldout = (ds.Moments.of(rng.normal(size=(n, 6))) for n in (200, 50))
    >>> layer = ds.Layer("fc", rng.normal(size=(10, 6)), None, inputs=training, heldout=heldout)
    >>> ds.numerics.choose_ridge(layer, grid=[1e-4, 1e-2]).grid
    (0.0001, 0.01)
    """
    if isinstance(solve, Layer):
        return _choose_for(solve, DalrOptions.of(variant, affine=affine), rank, grid)
    values = tuple(sorted(set(map(float, grid))))
    if not values:
        raise InvalidInputError("choose_ridge: the grid holds no ridge")
    pairs, judged = _judges(training, heldout, shards)
    squares: list[Vector] = [np.zeros(1)] * len(values)
    energy, ranks = 0.0, slice(0)
    for rest, unseen in pairs:
        for number, value in enumerate(values):
            factors = solve(rest, Ridge.relative(value))
            left, whole = _errors(factors, unseen, gradients)
            squares[number], ranks = squares[number] + np.maximum(left, 0.0), _ranks(factors, rank)
        energy += whole
    errors = tuple(float(relative(curve, energy)[ranks].mean()) for curve in squares)
    best = max(number for number, error in enumerate(errors) if error == min(errors))
    where = "averaged over the ranks to break-even" if rank is None else f"at rank {rank}"
    what = "the error" if gradients is None else "the root of the loss"
    return RidgeChoice(Ridge.relative(values[best]), values, errors, f"{what} on {judged}, {where}")


def _errors(factors: Factors, unseen: InputMoments, gradients: InputMoments | None) -> tuple[Vector, float]:
    """(K + 1,): squared errors, or nats times samples, on unseen rows; and the size of the outputs in that unit."""
    if gradients is None:
        return squared_errors(factors, unseen), outputs_energy(factors, unseen)
    nats = lost_nats(factors, unseen, gradients) * unseen.parts[0].samples
    return nats, float(nats[0])


def _choose_for(layer: Layer, options: DalrOptions, rank: int | None, grid: Iterable[float]) -> RidgeChoice:
    def solve(moments: InputMoments, ridge: Ridge) -> Factors:
        with warnings.catch_warnings():  # given where all rows are solved from
            warnings.simplefilter("ignore", FewSamplesWarning)
            warnings.simplefilter("ignore", OutlierFeaturesWarning)
            return dalr(layer.with_inputs(moments), ridge=ridge, variant=options.variant, affine=options.affine)

    gradients = layer.known_gradients if options.variant is Variant.WEIGHTED else None
    if layer.heldout is not None and layer.heldout.count:
        return choose_ridge(solve, layer.known_inputs, heldout=layer.heldout, gradients=gradients, rank=rank, grid=grid)
    if len(layer.shards) < 2:
        raise InvalidInputError(
            f"layer '{layer.name}': a ridge is chosen on held-out rows, or on at least two shards; the layer has none "
            f"of the first and {len(layer.shards)} of the second: accumulate with a held-out share, or with "
            "shards=8 (accumulate.heldout_share, accumulate.shards in a run file)"
        )
    return choose_ridge(solve, shards=layer.shards, gradients=gradients, rank=rank, grid=grid)


def _judges(training: M | None, heldout: M | None, shards: Sequence[M] | None) -> tuple[Iterable[tuple[M, M]], str]:
    """Return pairs of moments, to solve from and to judge by, and what the second are called in messages."""
    if shards is not None and training is None and heldout is None:
        nonempty, _ = nonempty_shards(shards)
        return zip(leave_one_out(nonempty), nonempty, strict=True), "the shards left out"
    if training is not None and heldout is not None and shards is None:
        return [(training, heldout)], "held-out rows"
    raise InvalidInputError("choose_ridge: judge by `training` with `heldout`, or by `shards` alone")


def _ranks(factors: Factors, rank: int | None) -> slice:
    """Return the ranks that are judged."""
    if rank is None:
        return slice(1, max(factors.break_even_rank, 1) + 1)
    if not 1 <= rank <= factors.max_rank:
        raise InvalidInputError(f"choose_ridge: rank must lie in 1..{factors.max_rank}, got {rank}")
    return slice(rank, rank + 1)
