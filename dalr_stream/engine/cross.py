"""One pass through two networks: what each layer reads in the compressed one, and gives in the original.

Layers compressed one after the other, or together, no longer read what they read in the original. Their targets stay:
the original's outputs. So each batch runs through both, and the rows [input | output] take the same tiles and lanes as
any others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from dalr_stream.engine.backend import backend_of
from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.capture.paired import with_rows
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.rows.tiling import RowBatch, Rows
from dalr_stream.numerics.statistics.centring import describe_non_finite
from dalr_stream.numerics.statistics.cross import CrossMoments, joint_rows
from dalr_stream.progress import Progress, Silent
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding


@dataclass(frozen=True, slots=True)
class LayerCrossMoments(Mapping[str, CrossMoments]):
    """Cross moments of the training rows, by layer name; `heldout` has those of the rows kept apart, where any were."""

    training: Mapping[str, CrossMoments]
    heldout: Mapping[str, CrossMoments] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> CrossMoments:
        return self.training[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.training)

    def __len__(self) -> int:
        return len(self.training)


def accumulate_cross(
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerCrossMoments:
    """Return, by layer, the moments of its inputs in `compressed` and its outputs in `original`, row for row.

    Outputs include the layer's bias b: means and sums about zero do too, and `cross_scatter_about(c, b)` and
    `outputs.scatter_about(b)` give those of y - b. `layers` are those that both networks have by that name; in the
    compressed one they may read fewer features. Of a convolution the same positions are taken in both.

    Nothing is written. Raises as `accumulate_stream` does, for either network. Memory: every layer's lanes at once, of
    width d + m each, see `streaming.plan`.
    """
    targets = {layer.stream: dataclasses.replace(layer, side=Side.OUTPUTS) for layer in layers}
    return accumulate_pairs(
        original, compressed, batches, layers, targets, rows=rows, folding=folding, progress=progress
    )


def accumulate_pairs(  # noqa: PLR0913  # those of accumulate_cross, and what stands beside each layer
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    targets: Mapping[str, LayerSpec],
    *,
    rows: RowRule | None,
    folding: Folding | None,
    progress: Progress | None,
) -> LayerCrossMoments:
    """Do what `accumulate_cross` does with any rows of the original as Z: of `targets`, by the streams of `layers`."""
    rows, folding, progress = rows or RowRule(), folding or Folding(), progress or Silent()
    if folding.shards > 1:
        raise InvalidInputError(f"cross moments are kept whole: leave out shards={folding.shards}")
    outputs: dict[str, Rows] = {}
    with ThreadPoolExecutor(folding.threads.workers) as executor:
        sink = _JointSink(FoldSink(folding, executor, backend=backend_of(folding)), outputs)
        total = len(batches) if isinstance(batches, Sized) else None
        paired = with_rows(original, batches, targets, rows, outputs)
        with progress.track("run both and fold", total, "batches") as advance:
            capture_rows(compressed, paired, layers, sink, rows=rows, batch_done=lambda _samples, _spared: advance(1))
        return sink.freeze()


class _JointSink:
    """Joins the rows of a batch to the outputs that lie ready for them, and folds both."""

    def __init__(self, folds: FoldSink, outputs: Mapping[str, Rows]) -> None:
        self._folds = folds
        self._outputs = outputs
        self._inputs: dict[str, int] = {}

    @property
    def held(self) -> Sequence[int]:
        return self._folds.held

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        return self._folds.skip(batch, samples, digest)

    def write(self, batch: RowBatch) -> None:
        joined = {layer: self._joined(layer, inputs) for layer, inputs in batch.rows.items()}
        self._folds.write(dataclasses.replace(batch, rows=joined))

    def finish(self) -> None:
        self._folds.finish()

    def freeze(self) -> LayerCrossMoments:
        split, inputs = dict(self._folds.freeze()), self._inputs
        return LayerCrossMoments(
            {name: CrossMoments(part.training, inputs[name]) for name, part in split.items()},
            {name: CrossMoments(part.heldout, inputs[name]) for name, part in split.items() if part.heldout.count},
        )

    def _joined(self, layer: str, inputs: Rows) -> Rows:
        self._inputs[layer] = inputs.shape[1]
        outputs = self._outputs[layer]
        if not np.isfinite(outputs).all():
            raise NonFiniteError(
                f"layer '{layer}': outputs of the original must be finite, got {describe_non_finite(outputs)}: look "
                "for overflow in half precision or bad inputs"
            )
        if inputs.shape[0] != outputs.shape[0]:
            raise InvalidInputError(
                f"layer '{layer}': both networks must give as many rows, the compressed one reads {inputs.shape[0]} "
                f"and the original gives {outputs.shape[0]}"
            )
        return joint_rows(inputs, outputs)
