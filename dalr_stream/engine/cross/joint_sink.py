"""Rows of two networks, side by side, on their way into one fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dalr_stream.engine.row_feed import Folds
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.paired import SecondNetwork
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.numerics.statistics.cross import joint_rows

_COARSE = (torch.float16, torch.bfloat16)


class JointSink:
    """Joins the rows of a batch to those of the second network, and folds both under the name of the pair."""

    def __init__(
        self, folds: Folds, second: SecondNetwork, names: Mapping[str, str], residuals: Mapping[str, str]
    ) -> None:
        """Fold under `names`: stream of x -> stream of the joint rows.

        `residuals`: stream of x -> stream of what its layer's output is added to, where z is to mend that.
        """
        self._folds = folds
        self._second = second
        self._names = names
        self._residuals = residuals

    @property
    def held(self) -> Sequence[int]:
        """Samples of each batch that the folds hold already."""
        return self._folds.held

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Tell whether the folds hold this batch already."""
        return self._folds.skip(batch, samples, digest)

    def write(self, batch: RowBatch) -> None:
        """Fold the rows of one batch beside those of the second network."""
        others = self._second.rows() if batch.samples else {}
        mine = {name: x for name, x in batch.rows.items() if name in self._names}
        rows = {self._names[name]: _joined(name, x, self._target(name, batch, others)) for name, x in mine.items()}
        counts = {self._names[name]: numbers for name, numbers in batch.counts.items() if name in self._names}
        self._folds.write(dataclasses.replace(batch, rows=rows, counts=counts))

    def _target(self, name: str, batch: RowBatch, others: Mapping[str, Any]) -> Any:
        """Return z, or z' where the stream is to be mended."""
        stream = self._residuals.get(name)
        if stream is None:
            return others[name]
        then, now = others[stream], batch.rows[stream]
        _require_as_many(name, now, then)
        return _wide(others[name]) + (_wide(then) - _wide(now))

    def finish(self) -> None:
        """Tell the folds that there are no more batches."""
        self._folds.finish()


def _joined(layer: str, inputs: Any, outputs: Any) -> Any:
    _require_as_many(layer, inputs, outputs)
    if isinstance(inputs, torch.Tensor):
        return torch.cat([inputs, outputs], dim=1)
    return joint_rows(inputs, outputs)


def _wide(rows: Any) -> Any:
    """Return rows in whose type a small difference is more than rounding."""
    return rows.float() if isinstance(rows, torch.Tensor) and rows.dtype in _COARSE else rows


def _require_as_many(layer: str, inputs: Any, outputs: Any) -> None:
    if inputs.shape[0] != outputs.shape[0]:
        raise InvalidInputError(
            f"layer '{layer}': both networks must give as many rows, the compressed one reads {inputs.shape[0]} "
            f"and the original gives {outputs.shape[0]}"
        )
