"""A whole network of blocks that were compressed one by one, each in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE, mark
from dalr_stream.network.surgery.copying import copied
from dalr_stream.network.surgery.plan import SurgeryPlan


def reassembled(model: nn.Module, blocks: Mapping[Path, SurgeryPlan]) -> nn.Module:
    """Return a copy of `model` with some blocks as they are in files, each given with how its layers were changed.

    Of a network that is open by blocks the result is too: it reads compressed blocks from those files, and all else
    where `model` reads it.
    """
    plan = SurgeryPlan(tuple(step for one in blocks.values() for step in one.steps))
    files = _by_name(blocks)
    if weights_elsewhere(model) is None:
        small = copied(model)
        plan.apply(small)
        _fill(small, files)
    else:
        small = _opened(model, plan, files)
    before: SurgeryPlan = getattr(model, PLAN_ATTRIBUTE, SurgeryPlan())
    mark(small, model, [*before.steps, *plan.steps])
    return small


def _fill(model: nn.Module, files: Mapping[str, Path]) -> None:
    state = model.state_dict()
    with torch.no_grad():
        for name, file in files.items():
            state[name].copy_(_tensor_in(file, name))


def _opened(model: nn.Module, plan: SurgeryPlan, files: Mapping[str, Path]) -> nn.Module:
    before = Pieces.of(model)
    small = before.skeleton()
    plan.apply(small)
    pieces = Pieces(small)
    names = [name for name, _ in small.named_parameters(remove_duplicate=False)]
    pieces.attach(_Joined(before, files), {name: name for name in names}, before.device)
    for name, parameter in small.named_parameters():
        if pieces.holding(name) is None:
            numbers = model.get_parameter(name).detach().clone()
            _set(small, name, nn.Parameter(numbers, requires_grad=parameter.requires_grad))
    for name, buffer in small.named_buffers():
        if name in files:
            _set(small, name, _tensor_in(files[name], name).to(buffer.device))
    return small.eval()


@dataclass(frozen=True, slots=True)
class _Joined:
    """Tensors of some files, and all others from where an open network reads them."""

    before: Pieces
    files: Mapping[str, Path]

    @property
    def stamp(self) -> list[list[Any]]:
        """What tells the files apart, at no cost."""
        own = [(path, path.stat()) for path in sorted(set(self.files.values()))]
        return [*self.before.stamp, *([str(path), seen.st_size, seen.st_mtime_ns] for path, seen in own)]

    def tensor(self, name: str) -> torch.Tensor:
        """Return one of them, in memory of its own."""
        return _tensor_in(self.files[name], name) if name in self.files else self.before.numbers(name)


def _by_name(blocks: Mapping[Path, SurgeryPlan]) -> dict[str, Path]:
    """Return which file has each tensor of the compressed blocks."""
    found: dict[str, Path] = {}
    for file in blocks:
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _tensor_in(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name).clone()
    return tensor


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, tensor)
