"""Selections put in place: one group of channels after another, each where it lies once others are gone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.kinds import channels_read
from dalr_stream.network.layers.obstacles import require_finite_weights
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.equivalence import require_as_before
from dalr_stream.network.surgery.plan import KeepNodes, first_layer
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.numerics.statistics.channels import ChannelGroup, ChannelSpan


class Keeper:
    """Narrows one group of channels after another, and knows where each span lies by then."""

    def __init__(self, small: nn.Module, structure: Structure) -> None:
        self._small = small
        self._structure = structure
        self._stay: dict[str, NDArray[np.bool_]] = {}
        """By layer: which of the features that it had in the original are left."""
        self._narrowed: dict[str, str] = {}
        self._kept: dict[str, tuple[ChannelGroup, NDArray[np.int64]]] = {}

    def keep(self, name: str, record: SelectedNodes) -> KeepNodes:
        """Keep the record's channels of layer `name`, and put its restore matrix A_J into every reader: W A_J."""
        group = self._structure.group_of(name)
        require_shape(name, (record.restore.shape[0],), (group.channels,))
        for producer in group.producers:
            if producer in self._narrowed:
                raise InvalidInputError(
                    f"layer '{name}': its channels are those of '{self._narrowed[producer]}', tied by an addition or a "
                    "product: select them once"
                )
            self._narrowed[producer] = name
        carriers = tuple(self._here(span, group.channels) for span in group.carriers)
        readers = tuple(self._here(reader.span, group.channels) for reader in group.readers)
        moved = bool(record.offset.any())
        biases = tuple(
            moved or layer_of(self._small, first_layer(self._small, span.layer)).bias is not None for span in readers
        )
        step = KeepNodes(name, group.channels, record.size, group.producers, carriers, readers, biases)
        step.narrow(self._small, record.kept, record.restore, record.offset)
        for span in readers:
            require_finite_weights(span.layer, layer_of(self._small, first_layer(self._small, span.layer)))
        for span in (*group.carriers, *(reader.span for reader in group.readers)):
            gone = np.delete(span.places(group.channels), record.kept, axis=0)
            self._features(span.layer)[gone] = False
        self._kept[name] = group, record.kept
        return step

    def require_as_before(self, replaced: Iterable[str]) -> None:
        """Raise UnsupportedLayerError where anything but the layers `replaced` and narrowed computes otherwise."""
        members = (
            name
            for group, _ in self._kept.values()
            for name in (*group.producers, *(reader.span.layer for reader in group.readers))
        )
        changed = {*map(module_name, replaced), *members}
        require_as_before(self._structure.model, self._small, changed, self._kept, self._structure.example)

    def _here(self, span: ChannelSpan, channels: int) -> ChannelSpan:
        """Return where a span of the original lies now that other channels of the same module are gone."""
        places = (np.cumsum(self._features(span.layer)) - 1)[span.places(channels)]
        here = ChannelSpan.at(span.layer, places)
        if here is None:
            raise UnsupportedLayerError(
                f"layer '{span.layer}': its channels lie in no regular order once others are gone: select those alone"
            )
        return here

    def _features(self, layer: str) -> NDArray[np.bool_]:
        width = channels_read(self._structure.model.get_submodule(layer))
        return self._stay.setdefault(layer, np.ones(width, np.bool_))


def require_shape(layer: str, got: tuple[int, ...], needed: tuple[int, ...]) -> None:
    """Raise InvalidInputError where a solution is of another shape than its layer."""
    if got != needed:
        shape = " x ".join(map(str, got))
        raise InvalidInputError(
            f"layer '{layer}': the solution is for {shape}, the layer has {' x '.join(map(str, needed))}: "
            "it was solved for another layer or network"
        )
