"""How far the outputs of a compressed network's layers are from the original's: one pass through both, sums alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.capture.paired import with_rows
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.layers.spec import weights_of, whole_outputs
from dalr_stream.network.surgery.plan import last_layer
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.numerics.sizes.losses import relative

Rows = NDArray[Any]


def output_errors(
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    *,
    rows: RowRule | None = None,
    holdout: HoldoutRule | None = None,
) -> dict[str, float]:
    """Return ||Y - Y~|| / ||Y - b|| of each layer: Y its outputs and b its bias in `original`, Y~ in `compressed`.

    Parameters
    ----------
    original, compressed
        In eval mode; the second from `compress` or `compress_sequentially`.
    batches
        What both networks are run on, as for `accumulate`.
    layers
        Names in the original. In the compressed network a layer may be a pair by now and read fewer features, but it
        must have as many outputs.
    rows
        Which positions count; of convolutions every one does, as nothing is kept of them.
    holdout
        Measure on the samples that it holds out; by default on all of them.

    Returns
    -------
    dict
        The relative error by layer: 0 where nothing was lost, about 1 where everything was.

    Raises
    ------
    InvalidInputError
        For a layer that a selection narrowed, or where no sample is left to measure on; otherwise as `accumulate_cross`
        does.

    See Also
    --------
    OutputDistance : one number for the whole network.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> ds.output_errors(model, model, batches, ["0", "2"])
    {'0': 0.0, '2': 0.0}
    """
    every = dataclasses.replace(rule_of(rows), most_patches=None)
    specs = [whole_outputs(original, name) for name in layers]
    outputs: dict[str, Rows] = {}
    now = {name: whole_outputs(compressed, last_layer(compressed, name)) for name in layers}
    for spec in specs:
        if now[spec.name].outputs != spec.outputs:
            raise InvalidInputError(
                f"layer '{spec.name}': gives {spec.outputs} outputs in one network and {now[spec.name].outputs} in the "
                "other: its nodes were pruned, so measure the layers that read them"
            )
    given = {spec.name: spec for spec in specs}
    biases = {spec.name: weights_of(original, spec.name)[1] for spec in specs}
    sink = _Gaps({spec.stream: name for name, spec in now.items()}, outputs, biases, holdout)
    capture_rows(compressed, with_rows(original, batches, given, every, outputs), list(now.values()), sink, rows=every)
    return sink.relative()


class _Gaps:
    """Sums the squares of the gaps between rows and the outputs that lie ready for them."""

    def __init__(
        self,
        names: Mapping[str, str],
        outputs: Mapping[str, Rows],
        biases: Mapping[str, NDArray[np.floating] | None],
        holdout: HoldoutRule | None,
    ) -> None:
        """`names`: stream in the compressed network -> layer in the original."""
        self._names = names
        self._outputs = outputs
        self._biases = biases
        self._holdout = holdout
        self._samples = self._rows = 0
        self._sums = {name: np.zeros(2) for name in names.values()}

    @property
    def held(self) -> Sequence[int]:
        return ()

    def skip(self, batch: int, samples: int, digest: str) -> bool:  # noqa: ARG002  # a RowSink; nothing is ever held
        return False

    def write(self, batch: RowBatch) -> None:
        for stream, rows in batch.rows.items():
            name = self._names[stream]
            numbers = batch.sample_numbers(stream, self._samples)
            measured = slice(None) if self._holdout is None else self._holdout.mask(numbers)
            y = self._outputs[name][measured].astype(np.float64)
            bias = self._biases[name]
            self._rows += len(y)
            self._sums[name] += (
                _squares(y - np.asarray(rows[measured], np.float64)),
                _squares(y if bias is None else y - bias),
            )
        self._samples += batch.samples

    def finish(self) -> None:
        if not self._rows:
            raise InvalidInputError(f"there is no held-out row among {self._samples} samples: measure on other batches")

    def relative(self) -> dict[str, float]:
        return {name: float(relative(sums[:1], float(sums[1]))[0]) for name, sums in self._sums.items()}


def _squares(matrix: NDArray[Any]) -> float:
    return float(np.vdot(matrix, matrix))
