"""What is to be watched so that selections can be solved: not the layers themselves, but what their readers read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.kinds import channels_read
from dalr_stream.network.layers.spec import LayerSpec, select_layers
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.rows.streams import Side, module_name
from dalr_stream.numerics.statistics.channels import ChannelReader


def with_readers(layers: Sequence[LayerSpec], structure: Structure) -> tuple[LayerSpec, ...]:
    """Return `layers`, each with its group of channels, and what is to be watched so that selections can be solved.

    That is what the readers of each group read: a linear layer's inputs, or the channels of a convolution or of a
    flattened image (`name@channels`).
    """
    known = _with_groups(layers, structure)
    watched = {layer.stream: layer for layer in known}
    for layer in known:
        for reader in () if layer.group is None else layer.group.readers:
            spec = _spec_of(reader, structure)
            before = watched.setdefault(reader.stream, spec)
            if (before.channels, before.repeats) != (spec.channels, spec.repeats):
                raise UnsupportedLayerError(
                    f"layer '{layer.name}': '{spec.name}' reads its channels in blocks of another size than others, "
                    "and their rows cannot be watched together: leave the layer out, or watch it alone"
                )
    return tuple(watched.values())


def readers_of(structure: Structure, layers: Sequence[str]) -> tuple[LayerSpec, ...]:
    """Return what is to be watched so that selections of `layers` can be solved, and nothing else.

    Raises UnsupportedLayerError where the channels of one of them cannot be pruned.
    """
    streams = {reader.stream for name in layers for reader in structure.group_of(name).readers}
    watched = with_readers(select_layers(structure.model, layers), structure)
    return tuple(layer for layer in watched if layer.stream in streams)


def _spec_of(reader: ChannelReader, structure: Structure) -> LayerSpec:
    """Return what is to be watched of one reader."""
    (spec,) = select_layers(structure.model, [reader.span.layer])
    if reader.stream == spec.stream:
        return spec
    span, width = reader.span, channels_read(structure.model.get_submodule(spec.name))
    channels = width // (span.block * span.repeats)
    return dataclasses.replace(spec, side=Side.CHANNELS, channels=channels, repeats=span.repeats)


def _with_groups(layers: Sequence[LayerSpec], structure: Structure) -> list[LayerSpec]:
    """Say of each layer what is pruned with its channels, or why they cannot be; layers that are tied, once."""
    known: list[LayerSpec] = []
    tied: dict[str, str] = {}
    for layer in layers:
        try:
            group = structure.group_of(module_name(layer.name))
        except UnsupportedLayerError as error:
            known.append(dataclasses.replace(layer, unprunable=str(error)))
            continue
        if layer.name in tied:
            first = tied[layer.name]
            reason = f"layer '{layer.name}': its channels are those of '{first}', tied by an addition or a product"
            known.append(dataclasses.replace(layer, unprunable=reason))
            continue
        tied |= dict.fromkeys(group.producers, layer.name)
        known.append(dataclasses.replace(layer, group=group))
    return known
