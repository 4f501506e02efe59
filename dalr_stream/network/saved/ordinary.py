"""Whether a narrowed transformers model is one that its class makes from a configuration with other numbers.

Where every layer of a kind kept as many nodes, `intermediate_size` says so, and `from_pretrained` can load the network
without this package. Which number that is, is not read off names: each one that is as large as the channels were is
tried, and the network that is built from it must have the same modules and tensors, and settings that differ in these
numbers alone.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dalr_stream.network.layers.identity import settings
from dalr_stream.network.surgery.plan import KeepNodes, SurgeryPlan

_MOST = 16
"""Configurations that are tried at most: numbers of one size are few."""


def ordinary_config(model: nn.Module, plan: SurgeryPlan) -> Any | None:
    """Return a configuration that the class of `model` makes a network of its shape from; None where there is none."""
    kept: dict[int, int] = {}
    for step in plan.steps:
        if not isinstance(step, KeepNodes) or kept.setdefault(step.channels, step.kept) != step.kept:
            return None
    if not kept:
        return None
    return next((one for one in itertools.islice(_candidates(model, kept), _MOST) if _makes(one, model, kept)), None)


def _candidates(model: Any, kept: dict[int, int]) -> Iterator[Any]:
    numbers = {name: value for name, value in vars(model.config).items() if isinstance(value, int)}
    named = [[name for name, value in numbers.items() if value == channels] for channels in kept]
    for names in itertools.product(*named):
        config = copy.deepcopy(model.config)
        for name, size in zip(names, kept.values(), strict=True):
            setattr(config, name, size)
        yield config


def _makes(config: Any, model: nn.Module, kept: dict[int, int]) -> bool:
    """Tell whether the network that is made from `config` is `model` but for its numbers; it takes no memory."""
    try:
        with torch.device("meta"):
            twin = type(model)(config)
    except Exception:  # noqa: BLE001  # whatever it is: its class makes no network of these numbers
        return False
    if _shapes(twin) != _shapes(model) or _kinds(twin) != _kinds(model):
        return False
    allowed = {(str(channels), str(size)) for channels, size in kept.items()}
    pairs = zip(model.modules(), twin.modules(), strict=True)
    return all(_same(dict(settings(one)), dict(settings(other)), allowed) for one, other in pairs)


def _same(one: dict[str, str], other: dict[str, str], allowed: set[tuple[str, str]]) -> bool:
    names = (one.keys() & other.keys()) - {"training"}
    return all(one[name] == other[name] or (one[name], other[name]) in allowed for name in names)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _kinds(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]
