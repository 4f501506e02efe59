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
from dalr_stream.network.kinds import CONVOLUTIONS, is_depthwise, require_supported

_MARK = "@group"


def group_name(layer: str, number: int) -> str:
    """Return the name of one group of a layer."""
    return f"{layer}{_MARK}{number}"


def module_name(name: str) -> str:
    """Return the name of the module that a layer, or a group of one, is."""
    return name.partition(_MARK)[0]


def groups_in(name: str, module: nn.Module) -> int:
    """Return the number of groups of a convolution; raises UnsupportedLayerError where low rank gains nothing."""
    if not isinstance(module, CONVOLUTIONS):
        raise UnsupportedLayerError(f"layer '{name}': only convolutions have groups, it is a {type(module).__name__}")
    if is_depthwise(module):
        raise UnsupportedLayerError(
            f"layer '{name}': it is a depthwise convolution: each of its {module.groups} groups is a matrix of rank 1, "
            "which factors cannot make smaller"
        )
    return module.groups


def require_splittable(name: str, module: nn.Module) -> None:
    """Raise UnsupportedLayerError where a layer, of one group or of several, cannot become a pair."""
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        groups_in(name, module)
    else:
        require_supported(name, module)


def part_of(name: str, module: nn.Module) -> nn.Module:
    """Return the group that `name` means as a convolution of its own, in the same memory; else `module` itself."""
    _, mark, number = name.partition(_MARK)
    if not mark:
        return module
    groups = groups_in(module_name(name), module)
    if not number.isdecimal() or int(number) >= groups:
        raise UnsupportedLayerError(f"layer '{name}': the module has groups 0..{groups - 1}")
    whole: Any = module
    part: nn.Module = type(whole)(
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
    _, mark, number = name.partition(_MARK)
    return tensor.chunk(groups_in(name, module), dim=1)[int(number)] if mark else tensor


def in_order(model: nn.Module, layer: str, ranks: Mapping[str, int]) -> list[str]:
    """Return the name of a layer that is given a rank, or of each of its groups.

    Raises InvalidInputError where a group is given none, or another one.
    """
    if list(ranks) == [layer]:
        return [layer]
    names = [group_name(layer, number) for number in range(groups_in(layer, model.get_submodule(layer)))]
    wrong = [*set(names).difference(ranks), *set(ranks).difference(names)]
    if wrong:
        raise InvalidInputError(
            f"layer '{layer}': needs factors of its groups '{names[0]}' to '{names[-1]}', each once; '{min(wrong)}' is "
            f"{'missing' if min(wrong) in names else 'none of them'}: see select_groups"
        )
    if len(set(ranks.values())) > 1:
        given = ", ".join(str(ranks[name]) for name in names)
        raise InvalidInputError(f"layer '{layer}': its groups need one rank, got {given}: call at_rank(k) with one k")
    return names
