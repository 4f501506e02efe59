"""Other numbers for a layer of a network that was just compressed, of the shape that it has there."""

from __future__ import annotations

import torch
from torch import nn

from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.obstacles import require_range
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.surgery.narrowing import fill
from dalr_stream.numerics.types import Matrix, Vector


def refit(model: nn.Module, name: str, weight: Matrix, bias: Vector | None) -> None:
    """Write a weight (m, k) and, where the layer has one, a bias (m,); the model is changed.

    Raises NonFiniteError where they do not fit into the layer's dtype.
    """
    layer = layer_of(model, name)
    require_range(name, matrix_of(layer).dtype, weight, *([] if bias is None else [bias]))
    fill(layer, torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias))
