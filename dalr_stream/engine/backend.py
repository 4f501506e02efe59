"""Which library folds, and in what form rows reach it: numpy, torch or CuPy.

With numpy, rows are copied into this process's memory as the network makes them. With torch, they stay tensors on a
device from the hook to the sums; only sums leave it, when a checkpoint is written and at the end. CuPy folds rows that
lie in a store, without torch.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.streaming.cupy_library import cupy_backend
from dalr_stream.streaming.folding import CUPY, Folding

if TYPE_CHECKING:
    from dalr_stream.network.capture.hooks import ToRows


def backend_of(folding: Folding) -> Backend:
    """Return the backend that `folding` asks for; raises InvalidInputError for a device that is not there."""
    if folding.device is None:
        return Backend()
    if folding.device == CUPY:
        return cupy_backend()
    from dalr_stream.network.torch_library import torch_backend, usable_device  # other ways do without torch

    return torch_backend(usable_device(folding.device))


def rows_for(folding: Folding) -> ToRows:
    """Return what makes rows, in the form that the backend takes, of what was read from a layer.

    Raises InvalidInputError for CuPy: what a network computes is folded by torch, where it lies.
    """
    from dalr_stream.network.layers.spec import to_host
    from dalr_stream.network.torch_library import on_device, usable_device

    if folding.device == CUPY:
        raise InvalidInputError(
            "device 'cupy' folds rows that lie in a store, not those that a network computes: keep the activations, or "
            "fold with torch by device = 'cuda'"
        )
    return to_host if folding.device is None else partial(on_device, device=usable_device(folding.device))
