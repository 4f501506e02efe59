"""What a compressed layer loses: a factor pair of its outputs at every rank, a selection of its nodes.

Names say the unit: `lost_*` is a share of energy (squares over squares, what sizes are decided by), `relative_*` its
root (norms over norms, what plots show, Eq. 13).
"""

from __future__ import annotations

import numpy as np

from dalr_stream.numerics.linalg.psd import tail_sums
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.selection.nodes import ChannelSelection, SelectedNodes
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector


def squared_errors(factors: Factors, moments: InputMoments) -> Vector:
    """(K + 1,): ||Y - Yhat||^2 at ranks 0..K over the rows of `moments`, all groups together."""
    pairs = zip(factors.parts, moments.parts, strict=True)
    return np.asarray(sum(part.errors(seen) for part, seen in pairs))


def outputs_energy(factors: Factors, moments: InputMoments) -> float:
    """||Y - b||^2, tr(W X X' W'): the scale of squared errors."""
    pairs = zip(factors.parts, moments.parts, strict=True)
    zero = np.zeros(factors.inputs)
    return sum(float(seen.products.forms(part.weight, part.weight, zero).sum()) for part, seen in pairs)


def lost_energy(factors: Factors, moments: InputMoments) -> Vector:
    """(K + 1,): ||Y - Yhat||^2 / ||Y - b||^2 at ranks 0..K on the rows of `moments`; zeros where the outputs are.

    Errors below their resolution may be negative: they count as none. Cost: 6 m d^2 operations.
    """
    return share(squared_errors(factors, moments), outputs_energy(factors, moments))


def lost_nats(factors: Factors, moments: InputMoments, gradients: InputMoments) -> Vector:
    """(K + 1,): what the loss of a sample rises by at ranks 0..K, in nats; each group of a convolution by itself."""
    groups = zip(factors.parts, moments.parts, gradients.parts, strict=True)
    return np.asarray(sum(part.losses(*own) for part, *own in groups))


def lost_nats_of_nodes(selection: ChannelSelection, metric: Matrix) -> Vector | None:
    """(m + 1,): what the loss of a sample rises by where 0..m nodes are kept; None where nothing is restored.

    `metric` is M of the loss (`selection.readers`). Sigma is L L' with the selection's factor L, and a node explains
    l'M l of tr(M Sigma). Of an order that was not limited. Cost: 2 m^3 operations.
    """
    if selection.factor is None:
        return None
    steps = np.einsum("ij,ij->j", selection.factor, metric @ selection.factor)
    lost = np.zeros(selection.order.size + 1)
    lost[: steps.size + 1] = tail_sums(steps, 0.0)
    return 0.5 * lost


def relative_errors(factors: Factors, moments: InputMoments) -> Vector:
    """Return ||Y - Yhat|| / ||Y - b|| at every rank (Eq. 13).

    Parameters
    ----------
    factors
        From `dalr`, `truncated_svd` or `solve`.
    moments
        Of the layer's inputs: the training rows, or held-out ones.

    Returns
    -------
    numpy.ndarray
        (K + 1,), at ranks 0..K; zeros where the outputs never move.

    See Also
    --------
    LowRankFactors.errors : the squared errors themselves.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> moments = ds.Moments.of(np.eye(2))
    >>> factors = ds.truncated_svd(np.diag([4.0, 3.0]), None)
    >>> ds.numerics.relative_errors(factors, moments).round(6).tolist()
    [1.0, 0.6, 0.0]
    """
    return relative(squared_errors(factors, moments), outputs_energy(factors, moments))


def relative(errors: Vector, energy: Vector | float) -> Vector:
    """Return the root of `share`: norms over norms."""
    return np.asarray(np.sqrt(share(errors, energy)))


def share(errors: Vector, energy: Vector | float) -> Vector:
    """Return squared errors over ||Y - b||^2, 0 where both are."""
    whole = np.broadcast_to(energy, errors.shape)
    return np.asarray(np.divide(np.maximum(errors, 0.0), whole, out=np.zeros(errors.shape), where=whole > 0))


def lost_nodes(selected: SelectedNodes, moments: Moments) -> float:
    """||phi - restore phi[kept] - offset||^2 / ||phi||^2 over the rows of `moments`, of all nodes; 0 where they are 0.

    Cost: d k^2 operations.
    """
    kept, restore, scatter = selected.kept, selected.restore, moments.scatter
    bias = moments.mean - restore @ moments.mean[kept] - selected.offset
    explained = 2.0 * float(np.vdot(restore, scatter[:, kept]))
    again = float(np.vdot(restore @ scatter[np.ix_(kept, kept)], restore))
    spread, count = float(np.trace(scatter)), moments.count
    energy = spread + count * float(moments.mean @ moments.mean)
    return max(spread - explained + again + count * float(bias @ bias), 0.0) / energy if energy > 0 else 0.0


def lost_towards(selected: SelectedNodes, nodes: CrossMoments) -> tuple[float, float]:
    """||phi - psi||^2 / ||phi||^2 and ||phi - A psi_J - offset||^2 / ||phi||^2: before the selection, and with it.

    Inputs of `nodes` are psi, the nodes of the compressed network; its outputs phi, those of the original.
    """
    d = nodes.output_features
    spread = np.zeros((d, d))
    spread[:, selected.kept] = selected.restore
    errors = [nodes.squared_error(np.eye(d), np.zeros(d)), nodes.squared_error(spread, selected.offset)]
    before, after = share(np.array(errors), float(np.trace(nodes.outputs.gram)))
    return float(before), float(after)
