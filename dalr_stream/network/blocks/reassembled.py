"""A whole network of blocks that were compressed one by one, each in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from dalr_stream.network.blocks.opened import opened_again, tensor_in
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.surgery.compress import mark_compressed, steps_of
from dalr_stream.network.surgery.copying import copied
from dalr_stream.network.surgery.plan import SurgeryPlan


def reassembled(model: nn.Module, blocks: Mapping[Path, SurgeryPlan]) -> nn.Module:
    """Return a copy of `model` with some blocks as they are in files, each given with how its layers were changed.

    Of a network that is open by blocks the result is too: it reads compressed blocks from those files, and all else
    where `model` reads it.
    """
    steps = [step for plan in blocks.values() for step in plan.steps]
    if weights_elsewhere(model) is not None:
        small = opened_again(model, SurgeryPlan(tuple(steps)), _by_name(blocks))
    else:
        small = copied(model)
        SurgeryPlan(tuple(steps)).apply(small)
        _fill(small, blocks)
    mark_compressed(small, model, [*steps_of(model), *steps])
    return small


def _fill(model: nn.Module, blocks: Mapping[Path, SurgeryPlan]) -> None:
    state = model.state_dict()
    with torch.no_grad():
        for name, file in _by_name(blocks).items():
            state[name].copy_(tensor_in(file, name))


def _by_name(blocks: Mapping[Path, SurgeryPlan]) -> dict[str, Path]:
    """Return which file has each tensor of the compressed blocks."""
    found: dict[str, Path] = {}
    for file in blocks:
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found
