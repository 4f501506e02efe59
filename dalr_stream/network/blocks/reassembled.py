"""A whole network of blocks that were compressed one by one, each in a record of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.saved.tensor_record import TensorRecord
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE, mark
from dalr_stream.network.surgery.copying import copied
from dalr_stream.network.surgery.plan import SurgeryPlan


def reassembled(model: nn.Module, blocks: Sequence[tuple[SurgeryPlan, TensorRecord]]) -> nn.Module:
    """Return a copy of `model` with some blocks as they are in records, each given with how its layers were changed.

    Of a network that is open by blocks the result is too: it reads compressed blocks from those records, and all else
    where `model` reads it.
    """
    plan = SurgeryPlan(tuple(step for one, _ in blocks for step in one.steps))
    records = {name: record for _, record in blocks for name in record.names}
    if weights_elsewhere(model) is None:
        small = copied(model)
        plan.apply(small)
        for _, record in blocks:
            record.fill(small)
    else:
        small = _opened(model, plan, records)
    before: SurgeryPlan = getattr(model, PLAN_ATTRIBUTE, SurgeryPlan())
    mark(small, model, [*before.steps, *plan.steps])
    return small


def _opened(model: nn.Module, plan: SurgeryPlan, records: Mapping[str, TensorRecord]) -> nn.Module:
    before = Pieces.of(model)
    small = before.skeleton()
    plan.apply(small)
    pieces = Pieces(small)
    names = [name for name, _ in small.named_parameters(remove_duplicate=False)]
    pieces.attach(_Joined(before, records), {name: name for name in names}, before.device)
    for name, parameter in small.named_parameters():
        if pieces.holding(name) is None:
            numbers = model.get_parameter(name).detach().clone()
            _set(small, name, nn.Parameter(numbers, requires_grad=parameter.requires_grad))
    for name, buffer in small.named_buffers():
        if name in records:
            _set(small, name, records[name].tensor(name).to(buffer.device))
    return small.eval()


@dataclass(frozen=True, slots=True)
class _Joined:
    """Tensors of some records, and all others from where an open network reads them."""

    before: Pieces
    records: Mapping[str, TensorRecord]

    @property
    def stamp(self) -> list[list[Any]]:
        """What tells the files apart, at no cost."""
        opened = {str(one.path): one for one in self.records.values()}
        return [*self.before.stamp, *(fact for path in sorted(opened) for fact in opened[path].stamp)]

    def tensor(self, name: str) -> torch.Tensor:
        """Return one of them, in memory of its own."""
        return self.records[name].tensor(name) if name in self.records else self.before.numbers(name)


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, tensor)
