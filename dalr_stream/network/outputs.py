"""The outputs of a network's layers, beside the batches of another run: what a compressed network is to reproduce."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture import samples_in, take_rows
from dalr_stream.network.layers import LayerSpec, to_numpy
from dalr_stream.network.reading import without_gradients
from dalr_stream.network.rows import BatchRows, RowRule
from dalr_stream.numerics.sides import Side
from dalr_stream.numerics.tiling import Rows


def with_outputs(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], rule: RowRule, outputs: dict[str, Rows]
) -> Iterator[Any]:
    """Yield each of `batches` once `model` has run on it; `outputs` then holds what its layers gave, bias and all.

    `outputs` is emptied before each batch. Raises InvalidInputError for a network in train mode, UnsupportedLayerError
    for a layer that a forward pass calls never or twice.
    """
    if any(module.training for module in model.modules()):
        raise InvalidInputError("capture: the original network must be in eval mode: call model.eval()")
    leaving = [dataclasses.replace(layer, side=Side.OUTPUTS) for layer in layers]
    seen = 0
    for batch in batches:
        outputs.clear()
        samples = samples_in(batch)
        if samples:
            chosen = BatchRows(rule, samples, seen, rule.mask_of(batch, samples), paired=True)
            with without_gradients():
                taken = take_rows(model, batch, leaving, chosen)
            outputs |= {
                layer.name: to_numpy(taken[spec.stream].rows) for layer, spec in zip(layers, leaving, strict=True)
            }
        seen += samples
        yield batch
