"""The metric in which errors of nodes count: what those that read them make of an error.

An error e of the nodes is W_r e at the outputs of a reader r, and with the gradients g of the loss by these outputs it
costs about 1/2 (g'W_r e)^2. So errors are compared in

    readers   M = sum over readers and taps of W_rt'W_rt             what the readers' outputs lose
    loss      M = sum of n_r W_rt'G_r W_rt,  G_r = E[g g']           what the loss does, n_r positions in a sample

where W_rt (m, d) has the weights of one tap of a kernel, or of one place of a flattened image: errors at different
places are taken as independent. M = I is spectral pruning as the paper has it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.linalg.psd import require_finite
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.statistics.channels import NodeReader
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, real_array

_ROUNDING = 1e-10
"""Of the largest entry of a metric, by which it may differ from its transpose."""


def metric_of(nodes: Moments | Layer, metric: Metric | str | ArrayLike) -> Matrix | None:
    """Return M (d, d) by its name, of a `Layer`, or as it was given; None for I.

    Raises InvalidInputError where a reader's weights or gradients are not known, and for a matrix of another shape.
    """
    if not isinstance(metric, str):
        features = nodes.known_nodes.features if isinstance(nodes, Layer) else nodes.features
        return _checked(metric, features)
    named = parse_choice(Metric, metric, "metric")
    if named is Metric.NODES:
        return None
    if not isinstance(nodes, Layer):
        raise InvalidInputError(f"metric '{named.value}' is made of the layers that read the nodes: give a Layer")
    return metric_of_readers(nodes.known_readers, named, nodes.name)


def metric_of_readers(readers: Iterable[NodeReader], metric: Metric, layer: str) -> Matrix | None:
    """Return M (d, d), summed over the readers of the nodes of `layer`. Cost: 2 m d^2 operations for each tap."""
    if metric is Metric.NODES:
        return None
    terms = [_seen_by(reader, metric, layer) for reader in readers]
    return np.asarray(sum(terms[1:], start=terms[0]))


def _seen_by(reader: NodeReader, metric: Metric, layer: str) -> Matrix:
    _, nodes, taps = reader.weight.shape
    total, gradients = np.zeros((nodes, nodes)), None
    if metric is Metric.LOSS:
        gradients = _gradients_of(reader, layer)
    for tap in range(taps):
        weight = np.ascontiguousarray(reader.weight[:, :, tap], dtype=np.float64)
        if gradients is None:
            total += weight.T @ weight
            continue
        seen = gradients.second_moment @ weight
        total += (gradients.count / max(gradients.samples, 1)) * (weight.T @ seen)
    return 0.5 * (total + total.T)


def _gradients_of(reader: NodeReader, layer: str) -> Moments:
    if reader.gradients is None:
        raise InvalidInputError(
            f"layer '{layer}': its nodes are read by '{reader.name}', whose gradients are not known: accumulate them "
            f"too, watch(..., gradients=['{reader.name}']) or network.gradients in a run file"
        )
    (gradients,) = reader.gradients.parts
    if gradients.features != reader.weight.shape[0] or gradients.count == 0:
        raise InvalidInputError(
            f"layer '{reader.name}': gradients of {gradients.count} rows by {gradients.features} outputs do not fit "
            f"its {reader.weight.shape[0]} outputs"
        )
    return gradients


def _checked(metric: ArrayLike, features: int) -> Matrix:
    matrix = np.array(real_array(metric, "metric"), dtype=np.float64)
    if matrix.shape != (features, features):
        raise InvalidInputError(f"metric must be {features} x {features}, as the nodes are, got shape {matrix.shape}")
    require_finite(matrix, "metric")
    scale = float(np.abs(matrix).max(initial=0.0))
    if np.abs(matrix - matrix.T).max(initial=0.0) > _ROUNDING * scale or np.diagonal(matrix).min(initial=0.0) < 0.0:
        raise InvalidInputError("metric must be symmetric, and no error may count less than nothing: it is W'G W")
    return 0.5 * (matrix + matrix.T)
