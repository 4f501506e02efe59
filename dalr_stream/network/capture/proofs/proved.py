"""What is proved of a network's rows once, for several passes over the same batches through networks made from it.

Whose rows are whose in a compressed network is what it was in the original: what takes a layer's place works on each
row by itself, as the layer did, and the rest is left as it was (`surgery.equivalence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from dalr_stream.network.capture.batches import call, inputs_copied, refusals_explained, samples_in
from dalr_stream.network.capture.masks import BatchMasks
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.proofs.proof import CaptureProof
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.streams import layer_of_stream, module_name


def prove(model: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], rule: RowRule) -> Orders | None:
    """Return the order of each layer's rows, by stream; None where the rule asks for no proof.

    Goes through the first batch with several samples and, where there is a mask, the first one with padding; raises as
    `CaptureProof` does. No row is kept.
    """
    if not rule.prove:
        return None
    proof = CaptureProof(model, layers)
    with without_gradients():
        for number, batch in enumerate(batches):
            samples = samples_in(batch)
            if not samples:
                continue
            masks = rule.masks_of(batch, samples)
            of_layers = {layer.stream: _of(layer.stream, masks) for layer in layers}
            with refusals_explained(batch, f"capture: batch {number}"):
                proof.orders(batch, samples)
                if proof.is_open(of_layers):
                    with proof.observing(batch, of_layers) as observed:
                        call(model, inputs_copied(batch))
                    proof.settle(observed, of_layers, {} if masks is None else masks.padding)
            if samples > 1 and proof.proved and (masks is None or proof.padding_is_proved):
                break
    return proof.proved


def _of(stream: str, masks: BatchMasks | None) -> Any:
    return None if masks is None else masks.of_layer(module_name(layer_of_stream(stream)))
