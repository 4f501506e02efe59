"""Which channels are coupled, as it was found when layers were watched: no network is needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from dalr_stream.errors import LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.streams import Side, module_name
from dalr_stream.numerics.statistics.channels import ChannelGroup


class Groups(Protocol):
    """What knows which channels are coupled: a `Structure`, or what is kept of one."""

    def group_of(self, name: str) -> ChannelGroup:
        """Return what is pruned with the channels of a layer; raises UnsupportedLayerError, with the reason."""


class RecordedGroups:
    """The groups that watched layers carry."""

    def __init__(self, layers: Iterable[LayerSpec]) -> None:
        self._layers = {module_name(layer.name): layer for layer in layers if layer.side is Side.INPUTS}

    def group_of(self, name: str) -> ChannelGroup:
        """Return what is pruned with the channels of a layer.

        Raises UnsupportedLayerError where they cannot be, or nobody looked; LayerNotFoundError for another layer.
        """
        if name not in self._layers:
            raise LayerNotFoundError(f"layer '{name}': it was not watched")
        layer = self._layers[name]
        if layer.group is None:
            reason = layer.unprunable or f"layer '{name}': nobody asked which channels are pruned with its own"
            raise UnsupportedLayerError(reason)
        return layer.group
