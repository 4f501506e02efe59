"""What one layer reads in one forward pass, so that layers which read the very same thing are known for it.

Q, K and V of an attention, gate and up of a gated MLP read one tensor: their rows, and so their moments, are the same
to the bit, and are taken, kept and folded once. This is decided by the tensor's memory, never by names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef


@contextmanager
def without_gradients() -> Iterator[None]:
    """Disable autograd but keep tensor version counters, which inference mode, also a caller's, turns off."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


@contextmanager
def same_draws(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Let a network draw the same random numbers each time, and leave the caller's as they are."""
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a tensor of a batch to a device; clone inference-mode tensors, which carry no version counter."""
    here = tensor.to(device)
    return here.clone() if here.is_inference() and not torch.is_inference_mode_enabled() else here


@dataclass(frozen=True, slots=True)
class Reading:
    """Equal for two layers of one forward pass where, and only where, the same numbers lie in the same memory."""

    storage: StorageWeakRef
    """Does not keep the numbers alive; while it is held, no other memory passes for this one."""
    view: tuple[Any, ...]
    """Offset, shape, strides and dtype."""
    version: int | object
    """How often the tensor was overwritten; in inference mode nobody counts, and a reading is equal to no other."""
    way: tuple[Any, ...]
    """How rows are made of it."""

    @classmethod
    def of(cls, tensor: torch.Tensor, way: tuple[Any, ...]) -> Reading:
        """Describe `tensor` as it is now, before the layer reads it."""
        view = tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        version = object() if tensor.is_inference() else tensor._version  # noqa: SLF001  # its public name
        weakly: Any = StorageWeakRef  # torch annotates no part of it
        return cls(weakly(tensor.untyped_storage()), view, version, way)
