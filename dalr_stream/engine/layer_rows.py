"""What any `RowFeed` of the layers of one network says of itself, however it runs the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dalr_stream.engine.capture import keep_weights, network_record
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.storage.contents import NetworkRecord
from dalr_stream.storage.places.place import Place


@dataclass
class LayerRows:
    """The rows of a network's layers, by a rule."""

    model: nn.Module
    batches: Iterable[Any]
    layers: Sequence[LayerSpec]
    rule: RowRule

    @property
    def streams(self) -> Sequence[str]:
        """Of the layers."""
        return [layer.stream for layer in self.layers]

    @property
    def choice(self) -> str:
        """The rule's words."""
        return self.rule.words

    def network(self) -> NetworkRecord:
        """Return what identifies the network and its streams."""
        return network_record(self.model, self.layers)

    def keep_weights(self, root: Place, network: NetworkRecord) -> None:
        """Write those of the layers."""
        keep_weights(self.model, self.layers, root, network.fingerprint)

    def finish(self) -> None:
        """Do nothing: the rows of a network that runs whole leave nothing behind."""
