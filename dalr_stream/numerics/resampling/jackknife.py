"""How much a solution depends on the samples it was fitted to: it is solved again without each shard in turn.

A shard is a random part of the training samples, and without it the moments are the sum of the others in the fixed
tree: exact removal, no subtraction. The g solutions without a shard give standard errors of every number, the
error on rows that a solution has not seen (each shard is unseen by the solution without it), and whether more data
would help.

Source: Quenouille 1956 and Tukey 1958; for groups of unequal size Busing, Meijer and van der Leeden, Delete-m jackknife
for unequal m, Statistics and Computing 9 (1999).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.linalg.psd import thin_qr
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.sizes.losses import outputs_energy, relative, relative_errors, squared_errors
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.types import Counts, Matrix, Vector

M = TypeVar("M", bound=InputMoments)


def leave_one_out(shards: Sequence[M]) -> Iterator[M]:
    """Yield the moments without each shard: the others in the fixed tree, as if that one had never been folded.

    `shards` may read each record when it is asked for; log2(g) + 2 of them are held at a time. Cost: g^2 d^2.
    Raises InvalidInputError for fewer than two shards.
    """
    g = len(shards)
    require_two(g)
    for out in range(g):
        yield merge_all(shards[number] for number in range(g) if number != out)


def standard_error(whole: Vector, without: Vector, counts: Counts) -> Vector:
    """Jackknife standard error of a statistic.

    With h_j = n / n_j, theta of the whole and theta_j without shard j,

        t_j = h_j theta - (h_j - 1) theta_j,      J = g theta - sum_j (1 - n_j / n) theta_j
        variance = 1/g sum_j (t_j - J)^2 / (h_j - 1)

    which for shards of one size is (g - 1)/g sum_j (theta_j - their mean)^2, and for the mean of rows in shards of one
    row the textbook's s / sqrt(n).

    Parameters
    ----------
    whole
        (p,), or a scalar array.
    without
        (g, p): the same statistic without each shard.
    counts
        (g,): rows of each shard, each more than 0.
    """
    h = _inverse_shares(counts).reshape(-1, *[1] * np.ndim(whole))
    pseudo = h * whole - (h - 1.0) * without
    centre = len(counts) * whole - ((1.0 - 1.0 / h) * without).sum(axis=0)
    return np.asarray(np.sqrt(((pseudo - centre) ** 2 / (h - 1.0)).mean(axis=0)))


@dataclass(frozen=True, slots=True, eq=False)
class LowRankJackknife:
    """Error bars on one low-rank solution; every curve has one value per rank, k = 0..K.

    Errors are norms, ||Y - Yhat|| / ||Y - b|| (Eq. 13).
    """

    counts: Counts
    """(g,): rows of each shard."""
    training: Vector = field(repr=False)
    """Of the whole solution on its own rows."""
    training_error: Vector = field(repr=False)
    unseen: Vector = field(repr=False)
    """Of the solutions without a shard on that shard, all shards together: cross-validation."""
    unseen_error: Vector = field(repr=False)
    heldout_error: Vector | None = field(repr=False)
    """Of the curve on held-out rows: what comes of the training samples, not of the choice of held-out ones."""
    turn: Vector = field(repr=False)
    """Standard error of the subspace spanned by the first k columns of `up`: the root mean square sine of the principal
    angles, 0 where it does not move, at most 1."""

    @property
    def samples_ratio(self) -> float:
        """Rows of the whole over those a solution without a shard saw, on average over the rows left out."""
        n = float(self.counts.sum())
        return n / (n - float((self.counts.astype(np.float64) ** 2).sum()) / n)


@overload
def jackknife_low_rank(shards: Layer, solve: Callable[[Layer], Factors]) -> LowRankJackknife: ...
@overload
def jackknife_low_rank(
    shards: Sequence[M], solve: Callable[[M], Factors], heldout: M | None = None
) -> LowRankJackknife: ...
def jackknife_low_rank(
    shards: Layer | Sequence[M], solve: Callable[[Any], Factors], heldout: M | None = None
) -> LowRankJackknife:
    """Solve from all shards and without each of them, and measure how much the solution moves.

    Parameters
    ----------
    shards
        g >= 2 records of one layer's training rows; empty ones are ignored. Or a `Layer`, which brings its shards
        and its held-out rows: `jackknife_low_rank(layer, ds.dalr)`.
    solve
        Moments to factors, the same way each time: `lambda moments: ds.dalr(weight, bias, moments)`. Of a `Layer`, the
        layer with fewer rows to factors.
    heldout
        Moments of rows that are in no shard.

    Returns
    -------
    LowRankJackknife
        Errors at every rank on training, left-out and held-out rows, each with its standard error.

    Raises
    ------
    InvalidInputError
        For fewer than two shards with rows.

    See Also
    --------
    sufficiency : whether the samples are enough.

    Notes
    -----
    Cost: g + 1 solutions.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> weight, shards = rng.normal(size=(10, 6)), [ds.Moments.of(rng.normal(size=(50, 6))) for _ in range(4)]
    >>> jackknife = ds.numerics.jackknife_low_rank(shards, lambda moments: ds.dalr(weight, None, moments))
    >>> bool(jackknife.unseen[2] > jackknife.training[2])  # at rank 2
    True
    """
    if isinstance(shards, Layer):
        layer = shards
        return jackknife_low_rank(layer.shards, lambda moments: solve(layer.with_inputs(moments)), layer.heldout)
    nonempty, counts = nonempty_shards(shards)
    require_two(len(nonempty))
    total = merge_all(iter(nonempty))
    whole = solve(total)
    training = relative_errors(whole, total)
    rounds = [
        _left_out(whole, solve(rest), shard, rest, heldout)
        for shard, rest in zip(nonempty, leave_one_out(nonempty), strict=True)
    ]
    squares, energies = np.array([left.squares for left in rounds]), np.array([left.energy for left in rounds])
    unseen = relative(squares.sum(axis=0), energies.sum())
    without = relative(squares.sum(axis=0) - squares, (energies.sum() - energies)[:, None])
    weights = (_inverse_shares(counts) - 1.0)[:, None]
    turned = np.array([left.sines_squared for left in rounds])
    ranks = np.maximum(np.arange(training.size), 1)
    return LowRankJackknife(
        counts,
        training,
        standard_error(training, np.array([left.training for left in rounds]), counts),
        unseen,
        standard_error(unseen, without, counts),
        None
        if heldout is None
        else standard_error(relative_errors(whole, heldout), np.array([left.heldout for left in rounds]), counts),
        np.minimum(np.sqrt((weights * turned).mean(axis=0) / ranks), 1.0),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _LeftOut:
    """What one solution without a shard is like; all but the energy have one value per rank."""

    training: Vector
    """Relative errors on the rows that it was solved from."""
    squares: Vector
    """Squared errors on the shard that it has not seen, not below 0."""
    energy: float
    """Of the outputs on that shard."""
    sines_squared: Vector
    """Sum over the principal angles to the whole solution's subspace, averaged over groups."""
    heldout: Vector | None
    """Relative errors on held-out rows."""


def _left_out(whole: Factors, factors: Factors, shard: M, rest: M, heldout: M | None) -> _LeftOut:
    """Compare the solution without a shard, from the `rest`, with the whole."""
    pairs = zip(whole.parts, factors.parts, strict=True)
    return _LeftOut(
        relative_errors(factors, rest),
        np.maximum(squared_errors(factors, shard), 0.0),
        outputs_energy(factors, shard),
        np.mean([_sines_squared(*pair) for pair in pairs], axis=0),
        None if heldout is None else relative_errors(factors, heldout),
    )


def require_two(shards: int) -> None:
    """Raise InvalidInputError where there are fewer than two shards."""
    if shards < 2:
        raise InvalidInputError(
            f"leaving one out takes at least two shards, got {shards}: fold with shards=8 (accumulate.shards)"
        )


def _inverse_shares(counts: Counts) -> Vector:
    """(g,): h_j = n / n_j."""
    return np.asarray(counts.sum() / counts)


def nonempty_shards(shards: Sequence[M]) -> tuple[Sequence[M], Counts]:
    """Return the shards that have rows, and how many each; a sequence without empty ones is returned as it is."""
    counts = np.array([shard.count for shard in shards], np.int64)
    nonempty = np.flatnonzero(counts)
    return (shards if nonempty.size == counts.size else [shards[int(number)] for number in nonempty]), counts[nonempty]


def _sines_squared(whole: LowRankFactors, other: LowRankFactors) -> Vector:
    """(K + 1,): sum of squared sines of the principal angles between the two first k columns: k - ||U_k' V_k||^2."""
    cosines = (_spanning(whole).T @ _spanning(other)) ** 2
    within = np.concatenate([[0.0], np.diagonal(cosines.cumsum(axis=0).cumsum(axis=1))])
    return np.asarray(np.maximum(np.arange(within.size) - within, 0.0))


def _spanning(factors: LowRankFactors) -> Matrix:
    """(m, K): orthonormal columns, the first k of which span what the first k of the basis do, for every k."""
    return factors.basis if factors.method.orthonormal else thin_qr(factors.basis)[0]
