"""What folds, and in what form rows reach it: the one place that knows both numpy's way and torch's.

With numpy, rows are copied into this process's memory as the network makes them. With torch, they stay tensors on a
device from the hook to the sums; only sums leave it, when a checkpoint is written and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dalr_stream.network.capture.hooks import ToRows
from dalr_stream.network.layers.spec import to_host
from dalr_stream.network.torch_fold import TorchFold, join_rows, on_device, usable_device
from dalr_stream.numerics.statistics.folding import CpuFold, NewFold
from dalr_stream.streaming.schedule import Folding


@dataclass(frozen=True, slots=True)
class Engine:
    """The functions that a fold of rows needs; numpy's by default."""

    new_fold: NewFold = CpuFold
    to_rows: ToRows = to_host
    """Makes rows of what was taken from a layer."""
    join: Callable[[Sequence[Any]], Any] = np.concatenate
    """Concatenates rows."""
    to_host: Callable[[Any], Any] = to_host
    """Makes an array of rows, for a checkpoint."""

    @classmethod
    def of(cls, folding: Folding) -> Engine:
        """Return the engine that `folding` asks for; raises InvalidInputError for a device that is not there."""
        if folding.device is None:
            return cls()
        device = usable_device(folding.device)
        return cls(
            partial(TorchFold, device=device),
            partial(on_device, device=device),
            partial(join_rows, device=device),
        )
