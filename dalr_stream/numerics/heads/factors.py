"""Attention as a unit: heads of every smaller size, from the moments of what its layers read.

Queries and keys enter through their inner products alone, values through the output layer alone. So what is cut is not
four matrices but two products a head, W_q' W_k and W_o W_v: the same rows of queries and keys, the same of values and
columns of the output layer go, and all four layers are smaller without any new one.

    scores     q'k over queries and keys of the data, in a metric that leaves out what all keys share: softmax does too
    outputs    W_o z, z what the attention hands the output layer: P of values commutes with the weights of attention

Heads that share keys and values have their readers summed up. What is kept of all heads then restores what is gone, as
nodes that a selection keeps do: z ~ A T z + offset, anchored at each head's own U. Where it is known what the loss
feels of keys and outputs, it may decide in the place of queries and of W_o: see `problem`. Where positions are rotated
into queries and keys, pairs of their dimensions are kept as they are, or go: see `pairs`.

After A3 (2505.12942), there with the values' inputs in place of z, and MoDeGPT (2408.09632).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

from dalr_stream.errors import InvalidInputError, RankError
from dalr_stream.numerics.diagnostics import Diagnostics, Route
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.heads.pairs import KeptPairs, dimensions_of, kept_pairs
from dalr_stream.numerics.heads.problem import HeadProblem, energy
from dalr_stream.numerics.heads.projection import HeadProjection, joint_projection
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.linalg.ridge_factor import factor_ridge
from dalr_stream.numerics.lowrank.output_metric import DEFAULT_GRADIENT_RIDGE
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Indices, Matrix, Vector

DEFAULT_RIDGE = 1e-3
"""Of the restoration, relative to the mean second moment of what is kept."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadFactors:
    """Heads of every size: what `head_factors` found.

    Attributes
    ----------
    layout
        The layers and their heads.
    scores
        By group: the projection of keys that queries lose least by; of the dimensions that are not rotated, where
        positions are rotated into others.
    mixed
        By group: the projection of values that the output layer loses least by.
    weight
        (m, H p): the output layer's.
    outputs_moment
        (H p, H p): Z, of what the output layer reads; about its mean where affine.
    mean
        (H p,): its mean; zeros unless affine.
    ridge
        Of the restoration.
    method
        `heads`, or `heads_weighted`.
    diagnostics
        Rows behind what the output layer reads, and the ridges.
    pairs
        Which rotary pairs are kept, for every number of them; None where positions are not rotated.
    """

    layout: HeadLayout
    scores: tuple[HeadProjection, ...]
    mixed: tuple[HeadProjection, ...]
    weight: Matrix
    outputs_moment: Matrix
    mean: Vector
    ridge: float
    method: Method
    diagnostics: Diagnostics
    pairs: KeptPairs | None = None

    def __repr__(self) -> str:
        sizes = self.layout.sizes
        return f"HeadFactors of '{self.layout.output}': {self.layout.heads} heads of {sizes[0]} to {sizes[-1]}"

    @property
    def score_losses(self) -> Vector:
        """(p + 1,): share of the energy of the scores that heads of 0..p dimensions lose; not increasing.

        Where positions are rotated, heads of an odd number lose what those of one dimension less do.
        """
        rest = self._rest_losses
        if self.pairs is None:
            return _share(rest)
        losses = np.full(self.layout.size + 1, self.pairs.losses[0] + rest[0])
        for size in self.layout.sizes:
            kept = self.pairs.split(int(size), rest)
            losses[size:] = min(losses[size], self.pairs.losses[kept] + rest[size - 2 * kept])
        return _share(losses)

    @property
    def _rest_losses(self) -> Vector:
        """What is lost where so many of the dimensions that are not rotated are kept."""
        return np.asarray(np.sum([one.losses for one in self.scores], axis=0))

    def at_size(self, size: int) -> NarrowedHeads:
        """Return heads of `size` dimensions.

        Parameters
        ----------
        size
            r, from 1 to p.

        Returns
        -------
        NarrowedHeads
            For `compress`.

        Raises
        ------
        RankError
            Where heads have no such size; where positions are rotated it is an even number of dimensions, or p.

        Notes
        -----
        Cost: (H p)^2 H r multiply-adds.
        """
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= self.layout.size:
            raise RankError(
                f"layer '{self.layout.output}': size of a head must lie in 1..{self.layout.size}, got {size!r}"
            )
        if size not in self.layout.sizes:
            raise RankError(
                f"layer '{self.layout.output}': size of a head must be even, as pairs that positions rotate stay "
                f"together, got {size}"
            )
        pairs = self._pairs_of(size)
        kept = block_diag(*(self.mixed[group].down[:size] for group in self._group_of_head))  # T
        restore = self._restore(kept, size)
        lost = self.weight - (self.weight @ restore) @ kept
        return NarrowedHeads(
            self.layout,
            np.array([self._of_scores(one.up.T, pairs, size) for one in self.scores]),
            np.array([self._of_scores(one.down, pairs, size) for one in self.scores]),
            np.array([one.down[:size] for one in self.mixed]),
            restore,
            np.zeros(len(restore)) if size == self.layout.size else self.mean - restore @ (kept @ self.mean),
            float(self.score_losses[size]),
            energy(lost, self.outputs_moment) / (self._energy or 1.0),
            tuple(map(int, pairs)),
        )

    def _pairs_of(self, size: int) -> Indices:
        """Return the rotary pairs that heads of a size keep, ascending."""
        if self.pairs is None:
            return np.arange(0)
        return np.sort(self.pairs.order[: self.pairs.split(size, self._rest_losses)])

    def _of_scores(self, rest: Matrix, pairs: Indices, size: int) -> Matrix:
        """(r, p): rotary pairs as they are, and below them rows of what takes the dimensions that are not rotated."""
        rotated, kept = self.layout.rotated, dimensions_of(pairs, self.layout)
        found = np.zeros((size, self.layout.size))
        found[np.arange(len(kept)), kept] = 1.0
        found[len(kept) :, rotated:] = rest[: size - len(kept)]
        return found

    @property
    def _group_of_head(self) -> list[int]:
        return [head // self.layout.shared for head in range(self.layout.heads)]

    @property
    def _energy(self) -> float:
        return energy(self.weight, self.outputs_moment)

    def _restore(self, kept: Matrix, size: int) -> Matrix:
        """Return A = U + (Z T' - U T Z T') (T Z T' + ridge)^-1: U itself at full size."""
        own = block_diag(*(self.mixed[group].up[:, :size] for group in self._group_of_head))  # U
        beside = self.outputs_moment @ kept.T
        within = kept @ beside
        factor = factor_ridge((within + within.T) / 2, self.ridge * float(np.trace(within)) / len(within))
        return np.asarray(own + factor.pull_back(factor.half((beside - own @ within).T)).T)


def head_factors(
    layers: Mapping[str, Layer],
    layout: HeadLayout,
    *,
    affine: bool = True,
    ridge: float = DEFAULT_RIDGE,
    weighted: bool = False,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> HeadFactors:
    """Return the heads of an attention in every smaller size.

    Parameters
    ----------
    layers
        By name, those of `layout`, each with the moments of what it reads: a domain's statistics.
    layout
        As `Structure.heads_of` gives it.
    affine
        Measure the outputs about their mean, which goes into the output layer's bias.
    ridge
        Of what restores the dimensions that are gone, relative to the mean second moment of those kept.
    weighted
        Keep what the loss feels most, by the gradients of keys and output layer.
    gradient_ridge
        The ridge of these gradients' second moment; a number is relative.

    Returns
    -------
    HeadFactors
        `.at_size(r)` has heads of r dimensions; at full size the attention is what it was.

    Raises
    ------
    InvalidInputError
        Where a layer's weights, moments or gradients are not of this layout, or not there.

    See Also
    --------
    head_losses : what they lose on held-out rows.
    dalr : one layer's factors; what these are for one head, without the restoration.

    Notes
    -----
    Cost: d^2 m multiply-adds for each layer m x d, and 20 p^3 a head. Memory: four matrices of (H p)^2.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> seen = ds.Moments.of(rng.normal(size=(200, 8)))
    >>> layers = {name: ds.Layer(name, rng.normal(size=(8, 8)), None, inputs=seen) for name in "qkvo"}
    >>> factors = ds.numerics.head_factors(layers, ds.numerics.HeadLayout(*"qkvo", heads=2, groups=2, size=4))
    >>> factors.at_size(2)
    NarrowedHeads of 'o': 2 of 2, of 4
    """
    if not ridge >= 0.0:
        raise InvalidInputError(f"layer '{layout.output}': ridge must be 0 or more, got {ridge}")
    problem = HeadProblem(layers, layout)
    moments = problem.inputs(layout.output)
    seen = moments.covariance if affine else moments.second_moment
    mean = moments.mean if affine else np.zeros(moments.features)
    weight = problem.weight(layout.output)
    of_keys = of_outputs = None
    if weighted:
        of_keys, of_outputs = (problem.felt(name, Ridge.of(gradient_ridge)) for name in layout.felt)
    met, rest = list(problem.scores(of_keys)), slice(layout.rotated, None)
    scores = tuple(joint_projection(readers[rest, rest], read[rest, rest]) for readers, read in met)
    mixed = tuple(joint_projection(*pair) for pair in problem.mixed(seen, of_outputs))
    method = Method.HEADS_WEIGHTED if weighted else Method.HEADS
    diagnostics, pairs = _diagnostics(moments, ridge), kept_pairs(met, layout) if layout.rotated else None
    return HeadFactors(layout, scores, mixed, weight, seen, mean, ridge, method, diagnostics, pairs)


def _diagnostics(moments: Moments, ridge: float) -> Diagnostics:
    """Say what the restoration comes from; its ridge is that of heads of full size."""
    spread = ridge * float(moments.products.diagonal(moments.mean).mean())
    return Diagnostics(moments.count, moments.samples, moments.features, None, spread, Route.EIGEN)


def _share(losses: Vector) -> Vector:
    return losses / (losses[0] or 1.0)
