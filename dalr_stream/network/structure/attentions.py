"""Which of the layers to watch are the output layers of attentions whose heads can get narrower."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.rows.streams import Side


def attentions_among(layers: Sequence[LayerSpec], structure: Structure) -> dict[str, HeadLayout | str]:
    """Return, of each layer of which the inputs are watched, the attention whose output layer it is; or why it is none.

    All layers of an attention must be watched. Cost: some forward passes of a few samples for each layer.
    """
    watched = {layer.name for layer in layers if layer.side is Side.INPUTS}
    found: dict[str, HeadLayout | str] = {}
    for name in (layer.name for layer in layers if layer.name in watched):
        if name not in found:
            found[name] = _attention(name, watched, structure)
    layouts = [layout for layout in found.values() if isinstance(layout, HeadLayout)]
    for layout in layouts:
        reason = f"belongs to the attention of '{layout.output}', and heads go by the name of that layer"
        found |= {name: f"layer '{name}': {reason}" for name in layout.layers[:-1]}
    return found


def _attention(name: str, watched: set[str], structure: Structure) -> HeadLayout | str:
    try:
        layout = structure.heads_of(name)
    except UnsupportedLayerError as error:
        return str(error)
    missing = [layer for layer in layout.layers if layer not in watched]
    if missing:
        return (
            f"layer '{name}': narrower heads need all layers of its attention, and {', '.join(missing)} are not among "
            "those to compress: add them"
        )
    return layout


def with_heads(layers: Sequence[LayerSpec], found: dict[str, HeadLayout | str]) -> tuple[LayerSpec, ...]:
    """Return the layers, each with its attention or the reason why it has none."""

    def told(layer: LayerSpec) -> LayerSpec:
        known = found.get(layer.name) if layer.side is Side.INPUTS else None
        if isinstance(known, HeadLayout):
            return dataclasses.replace(layer, heads=known)
        return dataclasses.replace(layer, no_heads=known or "")

    return tuple(map(told, layers))
