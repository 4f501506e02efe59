"""The groups of a convolution, each a layer of its own: `conv@group0`, `conv@group1`, ...

A group reads its own channels and gives its own, so it has its own rows, moments and factors, of d = (C / groups) k1 k2
features. Put back together at one rank, they are two convolutions of as many groups: k x k, then 1 x 1.
A depthwise convolution is refused: a group that is a single row or column is a matrix that no factors make smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.kinds import CONVOLUTIONS, plain_convolution, require_supported
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.rows.streams import GROUP, group_name, module_name


def groups_in(name: str, module: nn.Module) -> int:
    """Return the number of groups of a convolution; raises UnsupportedLayerError for others, and depthwise ones."""
    if not isinstance(module, CONVOLUTIONS):
        raise UnsupportedLayerError(f"layer '{name}': only convolutions have groups, it is a {type(module).__name__}")
    require_supported(name, module)
    return module.groups


def parts_of(name: str, module: nn.Module) -> tuple[str, ...]:
    """Return what of a layer is watched and solved by itself: the layer, or each of its groups."""
    if not isinstance(module, CONVOLUTIONS) or module.groups == 1:
        return (name,)
    return tuple(group_name(name, number) for number in range(module.groups))


def part_of(name: str, module: nn.Module) -> nn.Module:
    """Return the group that `name` means as a convolution of its own, in the same memory; else `module` itself."""
    _, mark, number = name.partition(GROUP)
    if not mark:
        return module
    groups = groups_in(module_name(name), module)
    if not number.isdecimal() or int(number) >= groups:
        raise UnsupportedLayerError(f"layer '{name}': the module has groups 0..{groups - 1}")
    whole: Any = module
    part: nn.Module = plain_convolution(whole)(
        whole.in_channels // groups,
        whole.out_channels // groups,
        whole.kernel_size,
        stride=whole.stride,
        padding=whole.padding,
        dilation=whole.dilation,
        padding_mode=whole.padding_mode,
        bias=whole.bias is not None,
        device="meta",
    )
    for parameter in ("weight", "bias"):
        tensor = getattr(whole, parameter)
        if tensor is not None:
            setattr(part, parameter, nn.Parameter(tensor.detach().chunk(groups)[int(number)], requires_grad=False))
    return part


def channels_of(name: str, module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Return the channels of a tensor that the module reads, or gives, which a group has; all for a whole layer."""
    _, mark, number = name.partition(GROUP)
    return tensor.chunk(groups_in(name, module), dim=1)[int(number)] if mark else tensor


def in_order(layer: str, module: nn.Module, given: Mapping[str, LowRankLayer]) -> list[LowRankLayer]:
    """Return the factors of a layer, or of each of its groups.

    Raises InvalidInputError where a group has none, or another rank.
    """
    names = parts_of(layer, module)
    wrong = [*set(names).difference(given), *set(given).difference(names)]
    if wrong:
        whose = f"'{layer}'" if names == (layer,) else f"its groups '{names[0]}' to '{names[-1]}', each once"
        raise InvalidInputError(
            f"layer '{layer}': needs factors of {whose}; '{min(wrong)}' is "
            f"{'missing' if min(wrong) in names else 'none of them'}"
        )
    parts = [given[name] for name in names]
    if len({part.rank for part in parts}) > 1:
        ranks = ", ".join(str(part.rank) for part in parts)
        raise InvalidInputError(f"layer '{layer}': its groups need one rank, got {ranks}: call at_rank(k) with one k")
    return parts
