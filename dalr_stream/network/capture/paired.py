"""Rows of a second network beside the batches that another one runs on: what a compressed network is to reproduce.

The second network runs on a batch when its rows are asked for, and not on those that a resumed pass skips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.hooks import ToRows
from dalr_stream.network.capture.loaders import beginning_at, can_resume
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.onward import OnwardPass
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.capture.taking import RowTaker
from dalr_stream.network.layers.spec import LayerSpec, to_host, to_numpy
from dalr_stream.numerics.rows.tiling import Rows
from dalr_stream.numerics.statistics.centring import describe_non_finite


class SecondNetwork:
    """A network whose layers' rows are wanted beside the batches that another network runs on."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, LayerSpec],
        rule: RowRule,
        to_rows: ToRows = to_host,
        onward: OnwardPass | None = None,
    ) -> None:
        """Rows of `layers` go by their keys, in the form that `to_rows` makes; what a layer gives includes its bias.

        Raises InvalidInputError for a network in train mode.
        """
        if any(module.training for module in model.modules()):
            raise InvalidInputError("capture: the original network must be in eval mode: call model.eval()")
        self._model = model
        self._layers = layers
        self._rule = rule
        self._taker = RowTaker(model, list(layers.values()), rule, paired=True, onward=onward)
        self._to_rows = to_rows
        self._batch: Any = None
        self._first_sample = 0

    def follow(self, batches: Iterable[Any], held: Sequence[int] = ()) -> Iterable[Any]:
        """Return `batches`, and take note of each as it passes; `held` has the samples of those that may be left out.

        Where the loader can begin in the middle, so can what is returned.
        """
        return (_ResumablyFollowed if can_resume(batches) else _Followed)(self, batches, held)

    def rows(self) -> dict[str, Any]:
        """Return the chosen rows of the batch that passed last; none where it has no samples.

        Raises UnsupportedLayerError for a layer that a forward pass calls never or twice, NonFiniteError.
        """
        batch, samples = self._batch, samples_in(self._batch)
        if not samples:
            return {}
        masks = self._rule.masks_of(batch, samples)
        with without_gradients():
            taken = self._taker.take(batch, samples, self._first_sample, masks)
        for key, layer in self._layers.items():
            _require_finite(key, taken[layer.stream].rows)
        return {key: self._to_rows(taken[layer.stream].rows) for key, layer in self._layers.items()}

    def passing(self, batches: Iterable[Any], first_sample: int) -> Iterator[Any]:
        """Yield each of the batches, the first of which begins with sample number `first_sample`, and remember it."""
        self._first_sample = first_sample
        for batch in batches:
            self._batch = batch
            yield batch
            self._first_sample += samples_in(batch)


def _require_finite(layer: str, rows: torch.Tensor) -> None:
    if not bool(torch.isfinite(rows.sum())) and not bool(torch.isfinite(rows).all()):  # most sums are finite, and cheap
        raise NonFiniteError(
            f"layer '{layer}': outputs of the original must be finite, got {describe_non_finite(to_numpy(rows))}: look "
            "for overflow in half precision or bad inputs"
        )


class _Followed:
    def __init__(self, network: SecondNetwork, batches: Iterable[Any], held: Sequence[int]) -> None:
        self._network = network
        self._batches = batches
        self._held = held

    def __iter__(self) -> Iterator[Any]:
        return self._network.passing(self._batches, 0)


class _ResumablyFollowed(_Followed):
    def starting_at(self, batch: int) -> Iterable[Any]:
        return self._network.passing(beginning_at(self._batches, batch), sum(self._held[:batch]))


def with_rows(
    model: nn.Module, batches: Iterable[Any], layers: Mapping[str, LayerSpec], rule: RowRule, rows: dict[str, Rows]
) -> Iterator[Any]:
    """Yield each of `batches` once `model` has run on it; `rows` then holds those of `layers`, by their keys.

    What a layer gave includes its bias. `rows` is emptied before each batch. Raises as `SecondNetwork` does.
    """
    second = SecondNetwork(model, layers, rule)
    for batch in second.follow(batches):
        rows.clear()
        rows |= second.rows()
        yield batch
