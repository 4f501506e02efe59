"""What is proved of a network's rows once, for several passes over the same batches through networks made from it.

Whose rows are whose in a compressed network is what it was in the original: what takes a layer's place works on each
row by itself, as the layer did, and the rest is left as it was (`surgery.equivalence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from dalr_stream.network.capture.batches import call, few_samples, inputs_copied, refusals_explained, samples_in
from dalr_stream.network.capture.masks import BatchMasks
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.proofs.ahead import Ahead, Walk
from dalr_stream.network.capture.proofs.proof import CaptureProof
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.streams import layer_of_stream, module_name

FEW = 8
"""Samples of a batch that the proof is made on: what is proved holds of each sample, however many there are."""


def prove(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    rule: RowRule,
    walk: Walk | None = None,
) -> Orders | None:
    """Return the order of each layer's rows, by stream; None where the rule asks for no proof.

    Goes through a few samples of the first batch with several and, where there is a mask, of the first one with
    padding; all of them where few do not call every layer, as a router may have it. The few go through the network
    together by `walk`, where one is given. Raises as `CaptureProof` does. No row is kept.
    """
    if not rule.prove:
        return None
    few = _orders(model, batches, layers, rule, FEW, walk)
    return few if few.keys() >= {layer.stream for layer in layers} else _orders(model, batches, layers, rule, None)


def _orders(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    rule: RowRule,
    most: int | None,
    walk: Walk | None = None,
) -> Orders:
    ahead = Ahead(layers, walk)
    proof = CaptureProof(model, layers, ahead)
    with without_gradients():
        for number, whole in enumerate(batches):
            if not samples_in(whole):
                continue
            batch, samples, masks = _part(whole, rule, most)
            of_layers = _by_stream(layers, masks)
            with refusals_explained(batch, f"capture: batch {number}"):
                ahead.look(batch, samples, masks, proved=bool(proof.proved))
                proof.orders(batch, samples)
                if proof.is_open(of_layers):
                    with proof.observing(batch, of_layers) as observed:
                        again = ahead.taken(batch)
                        observed.update(again or {})
                        if again is None:
                            call(model, inputs_copied(batch))
                    proof.settle(of_layers, {} if masks is None else masks.padding)
            if samples > 1 and proof.proved and (masks is None or proof.padding_is_proved):
                break
    return proof.proved


def _part(batch: Any, rule: RowRule, most: int | None) -> tuple[Any, int, BatchMasks | None]:
    """Return the first samples of a batch, where they have padding if others have; else the batch; and their masks."""
    samples = samples_in(batch)
    masks = rule.masks_of(batch, samples)
    if most is None or samples <= most:
        return batch, samples, masks
    few = few_samples(batch, most)
    their_masks = rule.masks_of(few, most)
    return (few, most, their_masks) if _padded(masks) <= _padded(their_masks) else (batch, samples, masks)


def _padded(masks: BatchMasks | None) -> set[str]:
    """Return the keys of the inputs that have padding."""
    found = {} if masks is None else masks.padding
    return {key for key, parts in found.items() if any(bool(padding.any()) for padding in parts)}


def _by_stream(layers: Sequence[LayerSpec], masks: BatchMasks | None) -> dict[str, Any]:
    of_layers = {layer.stream: module_name(layer_of_stream(layer.stream)) for layer in layers}
    return {stream: None if masks is None else masks.of_layer(name) for stream, name in of_layers.items()}
