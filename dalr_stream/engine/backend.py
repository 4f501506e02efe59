"""Numpy or torch: which folds, and in what form rows reach it.

With numpy, rows are copied into this process's memory as the network makes them. With torch, they stay tensors on a
device from the hook to the sums; only sums leave it, when a checkpoint is written and at the end.
"""

from __future__ import annotations

from functools import partial

from dalr_stream.network.capture.hooks import ToRows
from dalr_stream.network.layers.spec import to_host
from dalr_stream.network.torch_fold import TorchFold, join_rows, on_device, usable_device
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.streaming.folding import Folding


def backend_of(folding: Folding) -> Backend:
    """Return the backend that `folding` asks for; raises InvalidInputError for a device that is not there."""
    if folding.device is None:
        return Backend()
    device = usable_device(folding.device)
    return Backend(partial(TorchFold, device=device), partial(join_rows, device=device), to_host)


def rows_for(folding: Folding) -> ToRows:
    """Return what makes rows, in the form that the backend takes, of what was read from a layer."""
    return to_host if folding.device is None else partial(on_device, device=usable_device(folding.device))
