"""Whether what sizes are chosen from is of one network: the network, its statistics, and the distance from it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from dalr_stream.engine.own_weights import require_own_weights
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.numerics.layer import Layer


def require_one_network(model: nn.Module, layers: Mapping[str, Layer], distance: OutputDistance) -> None:
    """Raise InvalidInputError where statistics are of other weights than the network's, or the distance is.

    Weights that stay on disk are not read for it. Cost: the network's weights are gone through once.
    """
    for name, layer in layers.items():
        require_own_weights(model, name, layer, "sizes")
    if weights_elsewhere(model) is not None:
        return
    measures = isinstance(distance, OutputDistance) and distance.model is not model
    if measures and fingerprint(distance.model) != fingerprint(model):
        raise InvalidInputError(
            "sizes: the distance is from the outputs of another network than the one that is compressed: "
            "ds.OutputDistance(model, batches), of this one as it is now"
        )
