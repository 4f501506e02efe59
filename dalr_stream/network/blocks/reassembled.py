"""A whole network of blocks that were compressed one by one, each in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.saved.shards import Shards
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE, mark
from dalr_stream.network.surgery.copying import copied
from dalr_stream.network.surgery.plan import SurgeryPlan


def reassembled(model: nn.Module, blocks: Mapping[Path, SurgeryPlan]) -> nn.Module:
    """Return a copy of `model` with some blocks as they are in files, each given with how its layers were changed.

    Of a network that is open by blocks the result is too: it reads compressed blocks from those files, and all else
    where `model` reads it.
    """
    plan = SurgeryPlan(tuple(step for one in blocks.values() for step in one.steps))
    files = {name: opened for opened in map(Shards.open, blocks) for name in opened.files}
    if weights_elsewhere(model) is None:
        small = copied(model)
        plan.apply(small)
        _fill(small, files)
    else:
        small = _opened(model, plan, files)
    before: SurgeryPlan = getattr(model, PLAN_ATTRIBUTE, SurgeryPlan())
    mark(small, model, [*before.steps, *plan.steps])
    return small


def _fill(model: nn.Module, files: Mapping[str, Shards]) -> None:
    state = model.state_dict()
    with torch.no_grad():
        for name, file in files.items():
            state[name].copy_(file.tensor(name))


def _opened(model: nn.Module, plan: SurgeryPlan, files: Mapping[str, Shards]) -> nn.Module:
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
            _set(small, name, files[name].tensor(name).to(buffer.device))
    return small.eval()


@dataclass(frozen=True, slots=True)
class _Joined:
    """Tensors of some files, and all others from where an open network reads them."""

    before: Pieces
    files: Mapping[str, Shards]

    @property
    def stamp(self) -> list[list[Any]]:
        """What tells the files apart, at no cost."""
        opened = {one.head: one for one in self.files.values()}
        return [*self.before.stamp, *(fact for head in sorted(opened) for fact in opened[head].stamp)]

    def tensor(self, name: str) -> torch.Tensor:
        """Return one of them, in memory of its own."""
        return self.files[name].tensor(name) if name in self.files else self.before.numbers(name)


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, tensor)
