"""Restore the nodes of the original network from those that the network compressed so far keeps.

A_J of a selection restores nodes as they are in the network that it is solved in. Once earlier layers are compressed,
these are no longer what the next layer read in the original. The regression of the original's nodes phi on the
kept ones of the compressed network psi_J, shrunk towards that A_J, makes up for it as far as psi_J allows:

    min_A ||phi - A psi_J||^2 + lambda ||A - A_J||^2     A = A_J + E[(phi - A_J psi_J) psi_J'] (Sigma_JJ + lambda I)^-1

which is A_J itself where phi = psi and lambda = 0, and as lambda -> infinity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import numpy as np

from dalr_stream.numerics.linalg.ridge_factor import factor_ridge
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.numerics.statistics.channels import ChannelReader
from dalr_stream.numerics.statistics.cross import CrossMoments

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
