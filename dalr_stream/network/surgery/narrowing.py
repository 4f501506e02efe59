"""Layers made narrower in the channels they give, carry or read, each kind in its own way; the old ones are left alone.

A reader's weight becomes W A_J: at every tap of a convolution, and for every place of a flattened image, the columns of
the channels that stay take on what they restore of the others.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.kinds import CONVOLUTIONS, blank, channels_read, matrix_of, plain_convolution
from dalr_stream.numerics.statistics.channels import ChannelSpan
from dalr_stream.numerics.types import Indices, Matrix


def keep_outputs(module: nn.Module, kept: Indices) -> nn.Module:
    """Return a layer that gives only the channels `kept`."""
    old: Any = module
    narrow = like(module, inputs=_inputs_of(old), outputs=kept.size, bias=old.bias is not None)
    indices = torch.from_numpy(kept)
    fill(narrow, matrix_of(module).detach()[indices], None if old.bias is None else old.bias.detach()[indices])
    return narrow


def keep_carried(module: nn.Module, kept: Indices) -> nn.Module:
    """Return a batch norm, PReLU or depthwise convolution of the features `kept`."""
    old: Any = module
    indices = torch.from_numpy(kept)
    if isinstance(module, CONVOLUTIONS):
        narrow = _convolution(old, kept.size, kept.size, groups=kept.size, bias=old.bias is not None)
        fill(narrow, matrix_of(module).detach()[indices], None if old.bias is None else old.bias.detach()[indices])
        return narrow
    narrow = copy.deepcopy(module)
    width = channels_read(module)
    for name, tensor in (*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)):
        if tensor.ndim and len(tensor) == width:
            left = tensor.detach()[indices.to(tensor.device)]
            setattr(narrow, name, nn.Parameter(left) if isinstance(tensor, nn.Parameter) else left)
    setattr(narrow, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", kept.size)
    return narrow


def map_inputs(module: nn.Module, span: ChannelSpan, restore: Matrix, offset: Matrix, *, bias: bool) -> nn.Module:
    """Return a layer that reads k channels in place of the C at `span`, and does with them what it did with all.

    `restore` (C, k) and `offset` (C,) say what they were: phi ~ restore phi[kept] + offset. `bias` gives the layer one
    where it has none. Raises InvalidInputError for an offset where a convolution pads: the padding is not restored.
    """
    old: Any = module
    if offset.any() and isinstance(module, CONVOLUTIONS) and _pads(old):
        raise InvalidInputError(
            f"layer '{span.layer}': an offset cannot be folded into a convolution that pads its input: solve the "
            "selection with affine=False"
        )
    channels, left = restore.shape
    here, there = span.places(channels), span.narrowed(channels - left).places(left)
    inputs = _inputs_of(old) - here.size + there.size
    if old.weight.is_meta:
        return like(module, inputs=inputs, outputs=len(matrix_of(module)), bias=bias)
    wide = matrix_of(module).detach().double().cpu().numpy()
    wide = wide.reshape(len(wide), _inputs_of(old), -1)  # outputs x inputs x taps of the kernel
    read = wide[:, here].reshape(len(wide), channels, -1)
    mapped = np.einsum("mct,ck->mkt", read, restore, optimize=True)
    weight = np.empty((len(wide), inputs, wide.shape[2]))
    weight[:, there] = mapped.reshape(len(wide), *there.shape, -1)
    weight[:, np.delete(np.arange(weight.shape[1]), there)] = np.delete(wide, here.ravel(), axis=1)
    shift = np.einsum("mct,c->m", read, offset)
    if old.bias is not None:
        shift = shift + old.bias.detach().double().cpu().numpy()
    narrow = like(module, inputs=weight.shape[1], outputs=len(wide), bias=bias)
    fill(narrow, torch.from_numpy(weight.reshape(len(wide), -1)), torch.from_numpy(shift))
    return narrow


def fill(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Write W (m, d) and, where the layer has one, the bias (m,)."""
    own: Any = layer.bias
    with torch.no_grad():
        matrix_of(layer).copy_(weight)
        if own is not None and bias is not None:
            own.copy_(bias)


def like(module: nn.Module, *, inputs: int, outputs: int, bias: bool) -> nn.Module:
    """Return an unfilled layer of other widths; a Conv1D of transformers becomes the linear layer that it is."""
    old: Any = module
    if isinstance(module, CONVOLUTIONS):
        return _convolution(old, inputs, outputs, groups=1, bias=bias)
    return blank(nn.Linear(inputs, outputs, bias, device="meta"), old.weight)


def _convolution(old: Any, inputs: int, outputs: int, *, groups: int, bias: bool) -> nn.Module:
    made: nn.Module = plain_convolution(old)(
        inputs,
        outputs,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        dilation=old.dilation,
        groups=groups,
        bias=bias,
        padding_mode=old.padding_mode,
        device="meta",
    )
    return blank(made, old.weight)


def _inputs_of(module: Any) -> int:
    """Channels or features that a layer reads."""
    return int(module.in_channels if isinstance(module, CONVOLUTIONS) else matrix_of(module).shape[1])


def _pads(module: Any) -> bool:
    return module.padding == "same" or (module.padding != "valid" and any(module.padding))
