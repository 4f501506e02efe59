"""Whether what was measured of a layer is of the network at hand: its weight tells."""

from __future__ import annotations

import numpy as np
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.spec import weights_of
from dalr_stream.numerics.layer import Layer


def require_own_weights(model: nn.Module, name: str, layer: Layer, place: str) -> None:
    """Raise InvalidInputError, naming `place`, where a layer's statistics are of another weight than the network's.

    One of another shape is named where it is solved, and weights that stay on disk are not read for it.
    """
    if weights_elsewhere(model) is not None:
        return
    weight, _ = weights_of(model, name)
    if weight.shape == layer.weight.shape and not np.array_equal(weight, layer.weight, equal_nan=True):
        raise InvalidInputError(
            f"{place}: layer '{name}': the statistics have other weights than the network: they are of another one, or "
            "it was trained since: accumulate those of this network"
        )
