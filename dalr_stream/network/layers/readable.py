"""Tensors of which no rows can be taken, whatever the layer is."""

from __future__ import annotations

import torch
from torch._C import _functorch

from dalr_stream.errors import UnsupportedLayerError


def require_readable(name: str, tensor: torch.Tensor) -> None:
    """Raise UnsupportedLayerError, naming the layer, where the rows of what it reads or gives cannot be taken.

    Imaginary parts of complex numbers would be lost; inside `vmap` and `grad` of `torch.func` a tensor hides a whole
    batch, or belongs to a differentiation that ends with the call.
    """
    if tensor.is_complex():
        raise UnsupportedLayerError(
            f"layer '{name}': reads or gives complex numbers ({tensor.dtype}), and moments are of real ones: watch "
            "layers that have real and imaginary parts as features of their own"
        )
    if _functorch.is_functorch_wrapped_tensor(tensor):  # torch has no public name for it
        raise UnsupportedLayerError(
            f"layer '{name}': is called inside a transform of torch.func, such as vmap, which hides its rows: call it "
            "on the whole batch, or leave it out"
        )
