"""Heads of one size, and what they lose on rows that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.heads.problem import HeadProblem, energy
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class NarrowedHeads:
    """Heads of one size, and what the four layers become: a replacement for `compress`, under the output layer's name.

    Attributes
    ----------
    layout
        The layers, and their heads as they were.
    queries, keys, values
        (G, r, p): what takes a head's p dimensions to r, by group.
    restore
        (H p, H r): A, which the output layer's weight is multiplied by.
    offset
        (H p,): mean - A T mean, which goes into its bias; zeros unless affine.
    score_loss
        Share of the energy of the scores' differences between keys that is lost, on the training rows.
    output_loss
        Share of the energy of the outputs, about their mean where affine, that is lost, on the training rows.
    pairs
        The rotary pairs that queries and keys keep, ascending: their first dimensions; empty where positions are not
        rotated.
    """

    layout: HeadLayout
    queries: Matrix
    keys: Matrix
    values: Matrix
    restore: Matrix
    offset: Vector
    score_loss: float
    output_loss: float
    pairs: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"NarrowedHeads of '{self.layout.output}': {self.layout.heads} of {self.size}, of {self.layout.size}"

    @property
    def size(self) -> int:
        """r."""
        return int(self.keys.shape[1])

    @property
    def loss(self) -> float:
        """Share of the energy that is lost, of scores or of outputs: of the two that of which more is."""
        return max(self.score_loss, self.output_loss)

    @property
    def kept(self) -> Matrix:
        """(H r, H p): T, which takes what the output layer reads of all heads to what it reads of these."""
        heads = self.values.repeat(self.layout.shared, axis=0)
        return np.asarray(block_diag(*heads))


@dataclass(frozen=True, slots=True)
class HeadLosses:
    """Shares of energy that narrower heads lose on some rows.

    Attributes
    ----------
    scores
        Of the scores' differences between keys.
    outputs
        Of what the output layer gives, about its mean.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.numerics.HeadLosses(scores=0.02, outputs=0.01).outputs
    0.01
    """

    scores: float
    outputs: float

    @property
    def most(self) -> float:
        """Of the two the larger."""
        return max(self.scores, self.outputs)


def head_losses(heads: NarrowedHeads, layers: Mapping[str, Layer], *, heldout: bool = True) -> HeadLosses:
    """Return what narrower heads lose on rows of `layers`: held-out ones, which they were not fitted to.

    Parameters
    ----------
    heads
        What `HeadFactors.at_size` gives.
    layers
        By name, those of its layout, with moments of any rows.
    heldout
        Judge by the held-out rows; else by the others.

    Returns
    -------
    HeadLosses
        Shares of energy, from 0; above 1 where no head at all would be better.

    Raises
    ------
    InvalidInputError
        Where a layer is not given, is of another shape, or has no such rows.

    See Also
    --------
    head_factors : finds the heads.

    Notes
    -----
    Scores are weighed as if every query met every key. Cost: as `head_factors`.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> seen, unseen = (ds.Moments.of(rng.normal(size=(300, 8))) for _ in range(2))
    >>> layers = {n: ds.Layer(n, rng.normal(size=(8, 8)), None, inputs=seen, heldout=unseen) for n in "qkvo"}
    >>> factors = ds.numerics.head_factors(layers, ds.numerics.HeadLayout(*"qkvo", heads=2, groups=2, size=4))
    >>> losses = ds.numerics.head_losses(factors.at_size(3), layers)
    >>> 0 < losses.scores < 0.5
    True
    """
    problem = HeadProblem(layers, heads.layout, heldout=heldout)
    lost, whole = _lost_by(problem.scores(), heads)
    moments, weight = problem.inputs(heads.layout.output), problem.weight(heads.layout.output)
    rest, shift = _rest(heads, problem)
    shifted = weight @ shift
    outputs = energy(weight @ rest, moments.covariance) + float(shifted @ shifted)
    return HeadLosses(lost / (whole or 1.0), outputs / (energy(weight, moments.covariance) or 1.0))


def head_nats(heads: NarrowedHeads, layers: Mapping[str, Layer], *, heldout: bool = False) -> tuple[float, float]:
    """Return what the loss of a sample rises by, in nats, and what it would with nothing of the heads left.

    To second order, by the gradients of keys and output layer: 1/2 tr G (I - P) R (I - P)' of keys R, and the same of
    what the output layer gives, for each row of a sample. Errors of different rows, and of scores and outputs, are
    taken as independent.

    Parameters
    ----------
    heads
        What `HeadFactors.at_size` gives.
    layers
        By name, those of its layout, with moments of any rows, and gradients of keys and output layer.
    heldout
        Judge by the held-out rows; else by the others.

    Returns
    -------
    tuple of float
        Lost, and at stake.

    Raises
    ------
    InvalidInputError
        Where a layer is not given, is of another shape, or has no such rows or gradients.

    See Also
    --------
    head_losses : shares of energy, which need no gradients.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> seen, felt = ds.Moments.of(rng.normal(size=(300, 8))), ds.Moments.of(rng.normal(size=(300, 8)))
    >>> layers = {n: ds.Layer(n, rng.normal(size=(8, 8)), None, inputs=seen, gradients=felt) for n in "qkvo"}
    >>> layout = ds.numerics.HeadLayout(*"qkvo", heads=2, groups=2, size=4)
    >>> factors = ds.numerics.head_factors(layers, layout, weighted=True)
    >>> lost, at_stake = ds.numerics.head_nats(factors.at_size(3), layers)
    >>> 0 < lost < at_stake
    True
    """
    layout = heads.layout
    problem = HeadProblem(layers, layout, heldout=heldout)
    moments, weight = problem.inputs(layout.output), problem.weight(layout.output)
    scores = _lost_by(problem.scores(problem.felt(layout.keys)), heads)
    felt, (rest, shift) = problem.felt(layout.output), _rest(heads, problem)
    outputs = (
        float(np.vdot(felt, weight @ (rest @ moments.covariance @ rest.T + np.outer(shift, shift)) @ weight.T)),
        float(np.vdot(felt, weight @ moments.covariance @ weight.T)),
    )
    rows = [problem.rows_a_sample(name) / 2 for name in layout.felt]
    lost, at_stake = (rows[0] * score + rows[1] * output for score, output in zip(scores, outputs, strict=True))
    return lost, at_stake


def _lost_by(pairs: Iterable[tuple[Matrix, Matrix]], heads: NarrowedHeads) -> tuple[float, float]:
    """Return tr S (I - P) R (I - P)' of all groups, and tr S R."""
    lost = whole = 0.0
    for (readers, read), up, down in zip(pairs, heads.queries, heads.keys, strict=True):
        rest = np.eye(heads.layout.size) - up.T @ down
        lost += float(np.vdot(readers @ rest @ read, rest))
        whole += float(np.vdot(readers, read))
    return lost, whole


def _rest(heads: NarrowedHeads, problem: HeadProblem) -> tuple[Matrix, Vector]:
    """Return I - A T, which takes what the output layer reads to what it lacks, and what it lacks on average."""
    moments = problem.inputs(heads.layout.output)
    rest = np.eye(moments.features) - heads.restore @ heads.kept
    return rest, rest @ moments.mean - heads.offset
