"""Errors as shares: what a factor pair loses of the outputs at every rank, and a selection of the nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.lowrank.factors import SelectedNodes
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments

Vector = NDArray[np.float64]


def squared_errors(factors: Factors, moments: InputMoments) -> Vector:
    """(K + 1,): ||Y - Yhat||^2 at ranks 0..K over the rows of `moments`, all groups together."""
    pairs = zip(factors.parts, moments.parts, strict=True)
    return np.asarray(sum(part.errors(seen) for part, seen in pairs))


def outputs_energy(factors: Factors, moments: InputMoments) -> float:
    """||Y - b||^2, tr(W X X' W'): what squared errors are set against."""
    pairs = zip(factors.parts, moments.parts, strict=True)
    return sum(float(np.vdot(part.weight @ seen.gram, part.weight)) for part, seen in pairs)


def lost_energy(factors: Factors, moments: InputMoments) -> Vector:
    """(K + 1,): ||Y - Yhat||^2 / ||Y - b||^2 at ranks 0..K on the rows of `moments`; zeros where the outputs are.

    Errors below their resolution may be negative: they count as none. Cost: 6 m d^2 operations.
    """
    return share(squared_errors(factors, moments), outputs_energy(factors, moments))


def relative_errors(factors: Factors, moments: InputMoments) -> Vector:
    """(K + 1,): ||Y - Yhat|| / ||Y - b|| at ranks 0..K (Eq. 13); zeros where the outputs never move."""
    return relative(squared_errors(factors, moments), outputs_energy(factors, moments))


def relative(errors: Vector, energy: Vector | float) -> Vector:
    """Return the root of `share`: norms over norms."""
    return np.asarray(np.sqrt(share(errors, energy)))


def share(errors: Vector, energy: Vector | float) -> Vector:
    """Return squared errors over ||Y - b||^2, 0 where both are."""
    whole = np.broadcast_to(energy, errors.shape)
    return np.asarray(np.divide(np.maximum(errors, 0.0), whole, out=np.zeros(errors.shape), where=whole > 0))


def lost_nodes(kept: SelectedNodes, nodes: Moments) -> float:
    """||phi - A phi_J - offset|| / ||phi||: how far nodes are from what the kept ones restore; 0 where none fires.

    `nodes` are the moments of all d nodes. Cost: 2 d^3 operations.
    """
    gap = np.eye(nodes.features)
    gap[:, kept.kept] -= kept.restore
    shift = gap @ nodes.mean - kept.offset
    lost = float(np.vdot(gap @ nodes.scatter, gap)) + nodes.count * float(shift @ shift)
    return float(relative(np.array([lost]), float(np.trace(nodes.gram)))[0])
