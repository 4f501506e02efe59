"""The rows of each layer, made by hand: what it reads, unfolded where it is a convolution, and cut to what counts."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from zoo_case import Architecture

SINGLE = 1e-5
"""What the single-precision constants of ONNX leave."""


def run(net: nn.Module, batch: Any) -> Any:
    """Call a network on what the table's batches are."""
    batch = {k: v.clone() for k, v in batch.items()} if isinstance(batch, Mapping) else batch.clone()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return net(**batch) if isinstance(batch, Mapping) else net(batch)


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """Every tensor of floating point in what a network gave, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs] if outputs.is_floating_point() else []
    members = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, list | tuple) else ()
    return [tensor for member in members for tensor in tensors_of(member)]


def read_by(net: nn.Module, batch: Any, names: list[str]) -> dict[str, list[torch.Tensor]]:
    """What each module reads, call by call."""
    read: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.enter_context(layers_that_call_one_another())
        for name in names:

            def see(_: nn.Module, args: Any, keywords: Any, name: str = name) -> None:
                read[name].append((args or tuple(keywords.values()))[0].detach().clone())

            stack.callback(net.get_submodule(name).register_forward_pre_hook(see, with_kwargs=True).remove)
        run(net, batch)
    return read


def apart(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest difference of any entry, relative to the largest of all; infinite for other shapes."""
    if [one.shape for one in actual] != [two.shape for two in expected]:
        return float("inf")
    worst = 0.0
    for one, two in zip(actual, expected, strict=True):
        if two.numel():
            size = max(float(two.abs().nan_to_num(posinf=0.0, neginf=0.0).max()), 1e-300)
            same = (one == two) | (one.isnan() & two.isnan())
            worst = max(worst, float(torch.where(same, 0.0, (one - two).abs() / size).max()))
    return worst


def layers_that_call_one_another() -> ExitStack:
    """torch's fused transformer layers read weights and call nothing: off, as its documentation says."""
    stack, before = ExitStack(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    stack.callback(torch.backends.mha.set_fastpath_enabled, before)
    return stack


def rows_of(module: nn.Module, tensor: torch.Tensor, group: int = 0) -> torch.Tensor:
    """(..., d): what a layer reads as rows; a convolution's patches, channels first, by torch's own unfold."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return tensor
    if isinstance(module, nn.Conv1d):
        tensor = tensor[:, :, None]
    kernel, stride, dilation = (two(size) for size in (module.kernel_size, module.stride, module.dilation))
    if isinstance(module.padding, str):
        total = [d * (k - 1) if module.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in two(module.padding, fill=0)]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = (*sides[1], *sides[0])
    padded = functional.pad(tensor, around, mode=mode) if any(around) else tensor
    channels = padded.chunk(module.groups, 1)[group]
    return functional.unfold(channels, kernel, dilation=dilation, stride=stride).transpose(1, 2)


def two(size: tuple[int, ...], fill: int = 1) -> tuple[int, int]:
    return size if len(size) == 2 else (fill, size[0])  # type: ignore[return-value]


EXPERT = re.compile(r"((?P<block>.+)\.experts\.[^.]+)(\..+)?")
"""A layer of an expert, the expert, and the block that sends it some of the rows that it reads."""


def routed_positions(net: nn.Module, batch: Any, layer: str) -> list[int] | None:
    """Return which of its block's rows an expert was sent, in order, found by comparing them; None of other layers."""
    found = EXPERT.fullmatch(layer)
    if found is None:
        return None
    expert, block = found[1], found["block"]
    read = read_by(net, batch, [expert, block])
    if not read[expert]:
        return []
    given = read[block][0].flatten(0, -2)
    return [int((given == row).all(1).nonzero()[0, 0]) for row in read[expert][0].flatten(0, -2)]


def counted(one: Architecture, layer: str, rows: torch.Tensor, routed: list[int] | None = None) -> torch.Tensor:
    """(n, d): the rows that count of those of one call; a mask speaks of layers with a row for each position."""
    mask = mask_of(one, layer)
    if mask is not None and routed is not None:
        return rows.flatten(0, -2)[mask.flatten()[routed]]
    if mask is None or (rows.ndim == 2 and rows.shape[0] == mask.shape[0]):
        return rows.flatten(0, -2)
    if rows.ndim == 3 and rows.shape[:2] == mask.T.shape != mask.shape:  # time first
        rows = rows.transpose(0, 1)
    if rows.ndim > 2 and rows.shape[1] == 1:  # a pooled position
        return rows.flatten(0, -2)
    return rows.flatten(0, -2)[mask.flatten()]


def mask_of(one: Architecture, layer: str) -> torch.Tensor | None:
    """Look up the mask of a layer: the first pattern that its name matches decides."""
    if one.mask is None:
        return None
    masks = {"*": one.mask} if isinstance(one.mask, str) else one.mask
    for pattern, key in masks.items():
        expression = pattern[3:] if pattern.startswith("re:") else fnmatch.translate(pattern)
        if re.fullmatch(expression, layer):
            return one.batch[key].bool()
    return None
