"""Rows of a network's layers, beside the batches of another run: what a compressed network is to reproduce."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.hooks import RowTaker
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec, to_numpy
from dalr_stream.numerics.rows.tiling import Rows


def with_rows(
    model: nn.Module, batches: Iterable[Any], layers: Mapping[str, LayerSpec], rule: RowRule, rows: dict[str, Rows]
) -> Iterator[Any]:
    """Yield each of `batches` once `model` has run on it; `rows` then holds those of `layers`, by their keys.

    What a layer gave includes its bias. `rows` is emptied before each batch. Raises InvalidInputError for a network in
    train mode, UnsupportedLayerError for a layer that a forward pass calls never or twice.
    """
    if any(module.training for module in model.modules()):
        raise InvalidInputError("capture: the original network must be in eval mode: call model.eval()")
    seen = 0
    taker = RowTaker(model, list(layers.values()), rule, paired=True)
    for batch in batches:
        rows.clear()
        samples = samples_in(batch)
        if samples:
            with without_gradients():
                taken = taker.take(batch, samples, seen, rule.masks_of(batch, samples))
            rows |= {key: to_numpy(taken[layer.stream].rows) for key, layer in layers.items()}
        seen += samples
        yield batch
