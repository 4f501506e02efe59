"""A tensor as the bytes that lie in memory, whatever its type: what a record of a store keeps of it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray


def bytes_of(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the bytes of a dense tensor of one dimension, (n,) int8; on the CPU they are its own."""
    array: NDArray[Any] = tensor.detach().cpu().view(torch.int8).numpy()
    return array


def of_bytes(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of one dimension whose bytes these are, in their memory."""
    if not array.size:  # such an array may have strides that torch refuses to view
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(array).view(dtype)
