"""Which layers of a network a run watches, and what of them: all that the methods of its run file need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from dalr_stream.network.blocks.rehearsal import coupled_in_pieces
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.spec import LayerSpec, select_layers
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.watch import with_narrower_heads, with_selections
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.workflow.runfile.config import RunConfig


def layers_to_watch(
    network: nn.Module, config: RunConfig, structure: Callable[[], Structure], first_batch: Callable[[], Any]
) -> tuple[LayerSpec, ...]:
    """Return the layers to compress, those whose inputs decide which nodes to keep, outputs and gradients asked for.

    `structure` is called where a method needs to know which layers are coupled; of a network that goes block by block
    `first_batch`, as that shows within each block.
    """
    section = config.network
    inputs = select_layers(network, section.layers)
    apart = weights_elsewhere(network) is not None
    known = structure() if not apart and (config.selects or config.narrows) else None
    if not config.selects:
        inputs = tuple(dataclasses.replace(layer, unprunable=_not_asked(layer, "selection")) for layer in inputs)
    if apart and (config.selects or config.narrows):
        inputs = coupled_in_pieces(network, inputs, first_batch(), selects=config.selects, narrows=config.narrows)
    if known is not None and config.selects:
        inputs = with_selections(inputs, known)
    if known is not None and config.narrows:
        inputs = with_narrower_heads(inputs, known)
    outputs = select_layers(network, section.outputs, side=Side.OUTPUTS) if section.outputs else ()
    return inputs + outputs + _gradients(network, config, inputs)


def _not_asked(layer: LayerSpec, what: str) -> str:
    return f"layer '{layer.name}': solve.methods had no {what} when this was captured"


def _gradients(network: nn.Module, config: RunConfig, layers: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Watch the gradients asked for, and all that the weighted methods need: of layers, of readers, and of heads."""
    section, methods = config.network, config.solve.methods
    patterns = list(section.gradients)
    if not patterns:
        return ()
    if Method.DALR_WEIGHTED_AFFINE in methods:
        patterns += section.layers
    if any(method.metric is Metric.LOSS for method in methods):
        groups = (layer.group for layer in layers if layer.group is not None)
        patterns += (reader.span.layer for group in groups for reader in group.readers)
    if Method.HEADS_WEIGHTED in methods:
        layouts = (layer.heads for layer in layers if layer.heads is not None)
        patterns += (name for layout in layouts for name in layout.felt)
    return select_layers(network, list(dict.fromkeys(patterns)), side=Side.GRADIENTS)
