"""What a layer of each kind is as a matrix, and what its rows are: y = W x + b for every position it is applied at.

    Linear          x is a token or a sample; W is the weight
    Conv1d, Conv2d  x is the patch under the kernel, channels first: d = C k1 k2; W is the weight, flattened likewise
    Conv1D          of transformers: a linear layer whose weight lies transposed

A convolution's patches are gathered at the chosen positions alone: all of them would be k1 k2 times its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.fixed_code import why_fixed
from dalr_stream.network.layers.own_forward import is_linear
from dalr_stream.network.layers.pair import FactorPair

SUPPORTED = "a Linear layer, a convolution in 1 or 2 dimensions, not depthwise, or a Conv1D of transformers"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
CARRIERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)
_WEIGHTED = (
    nn.Linear, nn.Bilinear, *CONVOLUTIONS, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class LayerRows:
    """The rows of a layer in one batch, not copied yet: `tensor` is (N, positions..., whatever makes a row...)."""

    tensor: torch.Tensor
    positions: int
    """Leading dimensions: the sample, and where in it."""
    of_patches: bool = False
    """Whether they are positions of an image, overlapping patches even: far too many to keep them all."""
    given_for_patches: bool = False
    """Whether each is what a convolution gave for one patch."""

    @property
    def leading(self) -> tuple[int, ...]:
        """N and the positions."""
        return tuple(self.tensor.shape[: self.positions])

    def take(self, numbers: torch.Tensor | None) -> torch.Tensor:
        """Copy all rows, or those of the flat `numbers`, as (n, d)."""
        if numbers is None:
            copied = self.tensor.clone(memory_format=torch.contiguous_format)
            return copied.reshape(math.prod(self.leading), -1)
        if self.positions == 1:
            return self.tensor[numbers].flatten(1)
        return self.tensor[torch.unravel_index(numbers, self.leading)].flatten(1)


def why_not(module: nn.Module) -> str | None:
    """Return why a module cannot be compressed; None where it can."""
    if (fixed := why_fixed(module)) is not None:
        return fixed
    reason = _unreadable(getattr(module, "weight", None))
    if reason is not None and has_weights(module):
        return f"its weight {reason}"
    if isinstance(module, CONVOLUTIONS) and is_depthwise(module):
        return (
            f"it is a depthwise {type(module).__name__}: each of its {module.groups} groups is a matrix of rank 1, "
            "which factors cannot make smaller"
        )
    fused = _fused_weights(module)
    if fused:
        return (
            f"it is a {type(module).__name__}, which holds the weights of several layers in one tensor, as of experts: "
            f"{', '.join(fused)}; let each be a Linear layer of its own"
        )
    known = next((kind for kind in (nn.Linear, *CONVOLUTIONS) if isinstance(module, kind)), None)
    if known is not None and _computes_otherwise(module):
        return f"it is a {type(module).__name__}, which does not compute what a {known.__name__} does"
    return None if known is not None or is_transposed(module) else f"it is a {_class_of(module)}"


def _class_of(module: nn.Module) -> str:
    """Return the name of a module's class, with where it is from if torch has another one of that name."""
    kind = type(module)
    return kind.__name__ if getattr(nn, kind.__name__, kind) is kind else f"{kind.__module__}.{kind.__name__}"


def _unreadable(weight: Any) -> str | None:
    """Return why a weight is no plain matrix of real numbers; None where it is, or there is none."""
    if is_lazy(weight):
        return "has no shape before a batch went through: run the network once first"
    if not isinstance(weight, torch.Tensor):
        return None
    if type(weight) not in (torch.Tensor, nn.Parameter):
        return f"is a {type(weight).__name__}, packed, quantised or sharded: compress the network before that is done"
    if weight.layout is not torch.strided:
        return f"is a sparse tensor ({weight.layout}): make it dense first, as nn.Parameter(weight.to_dense())"
    if not weight.is_floating_point():
        return f"holds {weight.dtype} and not real numbers"
    return None


def _computes_otherwise(module: nn.Module) -> bool:
    """Tell a layer whose class computes in a way of its own."""
    kind = next(kind for kind in (nn.Linear, *CONVOLUTIONS) if isinstance(module, kind))
    names = ("forward", "_conv_forward") if kind in CONVOLUTIONS else ("forward",)
    own = any(getattr(type(module), name) is not getattr(kind, name) for name in names)
    return own and not (isinstance(module, nn.Linear) and is_linear(module))


def has_weights(module: nn.Module) -> bool:
    """Tell the layers that one might expect to be compressed, whether they can be or not."""
    known = isinstance(module, _WEIGHTED) or is_transposed(module) or bool(_fused_weights(module))
    return known or why_fixed(module) is not None


def _fused_weights(module: nn.Module) -> list[str]:
    """Return the weights that are several matrices, as transformers keeps those of all experts of a layer."""
    if isinstance(module, _WEIGHTED) or type(module).__module__.startswith("torch."):  # it is known what they hold
        return []
    return [
        f"'{name}' of {' x '.join(map(str, parameter.shape))}"
        for name, parameter in module.named_parameters(recurse=False)
        if not is_lazy(parameter) and parameter.ndim == 3 and 1 not in parameter.shape
    ]


def is_depthwise(module: nn.Conv1d | nn.Conv2d) -> bool:
    """Tell whether the matrix of each group is a single row or column, as those of a depthwise convolution are."""
    return module.groups > 1 and 1 in (module.out_channels // module.groups, module.weight[0].numel())


def require_supported(name: str, module: nn.Module) -> None:
    """Raise UnsupportedLayerError, naming the reason, where the layer cannot be compressed."""
    reason = why_not(module)
    if reason is not None:
        raise UnsupportedLayerError(f"layer '{name}': must be {SUPPORTED}, {reason}")


def matrix_of(module: nn.Module) -> torch.Tensor:
    """(m, d): W; of a convolution of several groups, those of its groups below one another."""
    weight = cast("torch.Tensor", module.weight)
    return weight.T if is_transposed(module) else weight.flatten(1)


def way_of_reading(module: nn.Module) -> tuple[Any, ...]:
    """Return how a layer makes rows of what it reads: layers that read one tensor in equal ways have equal rows."""
    if not isinstance(module, CONVOLUTIONS):
        return ()
    return module.kernel_size, module.stride, tuple(_padding(module)), module.padding_mode, module.dilation


def rows_entering(name: str, module: nn.Module, tensor: torch.Tensor) -> LayerRows:
    """Return what a layer reads as rows of d features."""
    if isinstance(module, CONVOLUTIONS):
        return _patches(name, module, tensor)
    return LayerRows(tensor.detach(), tensor.ndim - 1)


def rows_leaving(module: nn.Module, tensor: torch.Tensor) -> LayerRows:
    """Return what a layer gives as rows of m features."""
    if not isinstance(module, CONVOLUTIONS):
        return LayerRows(tensor.detach(), tensor.ndim - 1)
    return LayerRows(tensor.detach().movedim(1, -1), tensor.ndim - 1, given_for_patches=True)


def rows_of_channels(name: str, module: nn.Module, tensor: torch.Tensor, channels: int, repeats: int = 1) -> LayerRows:
    """Return what a layer reads as rows of `channels`, a row a position: images, flattened ones too.

    Features are `repeats` places of all channels, each with the positions of one channel after those of another.
    """
    images = tensor.detach()
    last = images.movedim(1, -1) if isinstance(module, CONVOLUTIONS) else images
    if last.shape[-1] % (repeats * channels):
        raise UnsupportedLayerError(
            f"layer '{name}': must read flattened channels, {repeats} times {channels} of them, got "
            f"{tuple(images.shape)}"
        )
    if last.shape[-1] != channels:
        last = last.reshape(*last.shape[:-1], repeats, channels, -1).movedim(-2, -1).flatten(-3, -2)
    return LayerRows(last, last.ndim - 1, of_patches=last.ndim > 2)


def channels_given(module: nn.Module) -> int | None:
    """Channels, or nodes, of what a layer gives; None for what is no layer of weights."""
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and not is_transposed(module):
        return None
    return int(matrix_of(module).shape[0])


def channels_read(module: nn.Module) -> int:
    """Channels, or nodes, that a layer or a batch norm reads."""
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels
    for attribute in ("num_features", "num_parameters"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    return int(matrix_of(module).shape[1])


def carries_channels(module: nn.Module) -> bool:
    """Tell what acts on each channel by itself, with parameters for it, and gives as many as it reads."""
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels == module.out_channels == module.groups > 1 and not _computes_otherwise(module)
    return isinstance(module, CARRIERS) and channels_read(module) > 1


def is_transposed(module: nn.Module) -> bool:
    """Tell transformers' Conv1D by its looks: the library is not imported for it."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def factor_pair(module: nn.Module, rank: int, *, bias: bool) -> FactorPair:
    """Return an unfilled pair in its place: the same kernel to `rank` channels without bias, then 1 x 1; by group."""
    outputs, inputs = matrix_of(module).shape
    like = cast("torch.Tensor", module.weight)
    if not isinstance(module, CONVOLUTIONS):
        down, up = nn.Linear(inputs, rank, bias=False, device="meta"), nn.Linear(rank, outputs, bias, device="meta")
        return blank(FactorPair(down, up), like)
    kind: Any = plain_convolution(module)
    between = rank * module.groups
    down = kind(
        module.in_channels,
        between,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        padding_mode=module.padding_mode,
        groups=module.groups,
        bias=False,
        device="meta",
    )
    up = kind(between, outputs, 1, groups=module.groups, bias=bias, device="meta")
    return blank(FactorPair(down, up), like)


def plain_convolution(module: nn.Conv1d | nn.Conv2d) -> type[nn.Conv1d | nn.Conv2d]:
    """Return torch's own class for a convolution: a subclass may have a constructor with defaults of its own."""
    return nn.Conv1d if isinstance(module, nn.Conv1d) else nn.Conv2d


def blank(layer: M, like: torch.Tensor) -> M:
    """Allocate a layer without initialising it, so the caller's random state is untouched."""
    return layer.to(like.dtype).to_empty(device=like.device)


def _patches(name: str, module: nn.Conv1d | nn.Conv2d, tensor: torch.Tensor) -> LayerRows:
    """View (N, C, L...) as (N, positions..., C, kernel...), without copying more than the padding."""
    dimensions = len(module.kernel_size)
    if tensor.ndim != dimensions + 2:
        raise UnsupportedLayerError(
            f"layer '{name}': a convolution must read samples x channels x {dimensions} dimensions, got "
            f"{tuple(tensor.shape)}"
        )
    padded = _padded(module, tensor.detach())
    steps, kernel, spread = module.stride, module.kernel_size, module.dilation
    sizes = padded.shape[2:]
    counts = [(n - s * (k - 1) - 1) // step + 1 for n, k, s, step in zip(sizes, kernel, spread, steps, strict=True)]
    sample, channel, *along = padded.stride()
    moves = [stride * step for stride, step in zip(along, steps, strict=True)]
    taps = [stride * s for stride, s in zip(along, spread, strict=True)]
    shape = (padded.shape[0], *counts, padded.shape[1], *kernel)
    return LayerRows(padded.as_strided(shape, (sample, *moves, channel, *taps)), 1 + dimensions, of_patches=True)


def _padded(module: nn.Conv1d | nn.Conv2d, tensor: torch.Tensor) -> torch.Tensor:
    sides = _padding(module)
    if not any(sides):
        return tensor
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(tensor, sides, mode=mode)


def _padding(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Return what is added before and after, last dimension first, as `torch.nn.functional.pad` takes it."""
    if module.padding == "same":
        total = [s * (k - 1) for k, s in zip(module.kernel_size, module.dilation, strict=True)]
        pairs = [(t // 2, t - t // 2) for t in total]
    elif module.padding == "valid":
        pairs = [(0, 0) for _ in module.kernel_size]
    else:
        pairs = [(p, p) for p in cast("Sequence[int]", module.padding)]
    return [side for pair in reversed(pairs) for side in pair]
