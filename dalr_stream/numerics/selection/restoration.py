"""Restore the nodes of the original network from those that the network compressed so far keeps.

A_J of a selection restores nodes as they are in the network that it is solved in. Once earlier layers are compressed,
these are no longer what the next layer read in the original. The regression of the original's nodes phi on the
kept ones of the compressed network psi_J, shrunk towards that A_J, makes up for it as far as psi_J allows:

    min_A ||phi - A psi_J||^2 + lambda ||A - A_J||^2     A = A_J + E[(phi - A_J psi_J) psi_J'] (Sigma_JJ + lambda I)^-1

which is A_J itself where phi = psi and lambda = 0, and as lambda -> infinity.

What reads the nodes, W phi + b, can be solved itself instead, towards anything that it should give, z: the same
regression with W A_J in the place of A_J, centred where the reader has a bias:

    min_V,b' ||z - V psi_J - b'||^2 + lambda ||V - W A_J||^2

A convolution reads t taps of each channel, a linear layer behind a flattened image t pixels: psi_J is then all of those
of the kept channels, and A_J restores each tap from the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.linalg.ridge_factor import factor_ridge
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.numerics.statistics.channels import ChannelReader
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.types import Indices, Matrix, Vector

Readers = Sequence[tuple[ChannelReader, ChannelReader]]
"""Each reader of a group of channels in the compressed network, and the same one in the original."""


def joint_cross(readers: Readers, channels: int, moments: Mapping[str, CrossMoments]) -> CrossMoments:
    """Return the joint cross moments of the channels, psi and phi, as all readers read them.

    `moments` are those of what both networks' readers read, by stream in the compressed one.
    """
    places = {(now.stream, now.first): (moments[now.stream], then.first) for now, then in readers}
    parts = [cross.part(first, target, channels) for (_, first), (cross, target) in places.items()]
    whole = reduce(add, parts)
    samples = max(part.samples for part in parts)  # the same ones at every place
    return CrossMoments(dataclasses.replace(whole.joint, samples=samples), channels)


def restored_towards(selected: SelectedNodes, nodes: CrossMoments, ridge: float) -> SelectedNodes:
    """Return the same kept nodes, restoring those of the original: inputs of `nodes` are psi, outputs phi, d each.

    `ridge` is relative to the mean diagonal of E[psi psi'], as that of `at_size`. Cost: d k^2 operations.
    """
    kept, sigma = selected.kept, nodes.inputs.second_moment
    own = sigma[np.ix_(kept, kept)]
    gap = nodes.cross_gram[:, kept] / nodes.count - selected.restore @ own
    system = factor_ridge(own, ridge * float(np.trace(sigma)) / len(sigma))
    return dataclasses.replace(selected, restore=selected.restore + system.pull_back(system.half(gap.T)).T)


@dataclass(frozen=True, slots=True, eq=False)
class RefittedReader:
    """What a layer does with the kept nodes alone: weight (m, k t) and bias (m,), None where it has none."""

    weight: Matrix
    bias: Vector | None


def refitted(
    selected: SelectedNodes,
    weight: NDArray[np.floating],
    bias: NDArray[np.floating] | None,
    moments: CrossMoments,
    ridge: float,
) -> RefittedReader:
    """Return the reader (m, d) of all nodes as one of the kept nodes, solved towards the outputs of `moments`.

    Its d inputs are t of each node, one after the other. `ridge` is relative to the mean diagonal of the inputs' second
    moment. Cost: m d k + (k t)^3 operations.
    """
    kept, d = _inputs_kept(selected, moments.input_features), moments.input_features
    inputs, count = moments.inputs, moments.count
    center, level = (inputs.mean, moments.outputs.mean) if bias is not None else (np.zeros(d), np.zeros(len(weight)))
    moved = (inputs.mean - center)[kept]
    own = inputs.scatter[np.ix_(kept, kept)] / count + np.outer(moved, moved)
    taps = weight.astype(np.float64).reshape(len(weight), len(selected.restore), -1)
    start = np.einsum("mct,ck->mkt", taps, selected.restore, optimize=True).reshape(len(weight), -1)
    gap = moments.cross_scatter_about(center, level)[:, kept] / count - start @ own
    system = factor_ridge(own, ridge * float(inputs.products.diagonal(np.zeros(d)).sum()) / count / d)
    solved = start + system.pull_back(system.half(gap.T)).T
    return RefittedReader(solved, None if bias is None else level - solved @ center[kept])


def _inputs_kept(selected: SelectedNodes, inputs: int) -> Indices:
    """(k t,): the inputs of a reader that are taps of the kept nodes, in the order that the narrower reader has."""
    taps = inputs // len(selected.restore)
    kept: Indices = (taps * selected.kept[:, None] + np.arange(taps)).ravel()
    return kept


def reader_errors(
    selected: SelectedNodes,
    weight: NDArray[np.floating],
    bias: NDArray[np.floating] | None,
    reader: RefittedReader,
    moments: CrossMoments,
) -> Vector:
    """(3,): ||.||^2 of what the reader gave before the selection less the outputs, with it, and of the outputs."""
    zero = np.zeros(len(weight))
    own = zero if bias is None else bias.astype(np.float64)
    narrow = np.zeros(weight.shape)
    narrow[:, _inputs_kept(selected, weight.shape[1])] = reader.weight
    before = moments.squared_error(weight.astype(np.float64), own)
    after = moments.squared_error(narrow, zero if reader.bias is None else reader.bias)
    return np.array([before, after, float(moments.outputs.products.diagonal(own).sum())])
