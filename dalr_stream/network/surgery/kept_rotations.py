"""Tables of positions narrowed to the pairs that an attention keeps.

A table that the attention holds is replaced by one of fewer entries. One that it is given is narrowed before each call,
as others are given the same: which entries stay is held by a module of its own beside the layers, `kept_rotations`,
which has no weights, moves with the network and shows in its repr.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.spec import module_of
from dalr_stream.network.structure.changed import Change
from dalr_stream.network.structure.rotary_tables import RotaryTable, like, place_of, renamed

CHILD = "kept_rotations"
_AXES = (-1, -2)


@dataclass(frozen=True, slots=True)
class NarrowTable:
    """One argument or attribute of a module, which positions are rotated by, keeps some of its entries."""

    module: str
    name: str
    argument: bool
    axis: int
    before: int
    """Entries of the tensors that are narrowed; others of the argument are left alone."""
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        own = all(isinstance(one, int) and not isinstance(one, bool) for one in (self.axis, self.before, *self.kept))
        if not own or self.axis not in _AXES or not all(0 <= one < self.before for one in self.kept) or not self.kept:
            raise InvalidInputError(
                f"plan: table '{self.name}' of '{self.module}' must keep some of its entries along axis -1 or -2, got "
                f"{self.kept!r} of {self.before!r} along {self.axis!r}"
            )
        if not isinstance(self.module, str) or not isinstance(self.name, str) or not isinstance(self.argument, bool):
            raise InvalidInputError(f"plan: a table is an argument or attribute of a module, got {self!r}")

    @classmethod
    def of(cls, table: RotaryTable, kept: Sequence[int], rotated: int) -> NarrowTable:
        """Return the table with the entries of some pairs."""
        entries = table.entries_of(kept, rotated)
        return cls(table.module, table.name, table.argument, table.axis, table.width, entries)

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> NarrowTable:
        """Read what `dataclasses.asdict` gave."""
        return cls(**{**plain, "kept": tuple(plain["kept"])})

    @property
    def table(self) -> RotaryTable:
        """What is narrowed."""
        return RotaryTable(self.module, self.name, self.argument, self.axis, self.before)


class KeptRotations(nn.Module):
    """Which rotations, of those that the module around it is given, it applies; `narrow_arguments` picks them."""

    def __init__(self, tables: Sequence[NarrowTable], places: Sequence[int]) -> None:
        super().__init__()
        self.tables = tuple(tables)
        self.places = tuple(places)
        """Where each is given by position."""
        for number, table in enumerate(tables):
            self.register_buffer(f"kept_{number}", torch.tensor(table.kept), persistent=False)

    def extra_repr(self) -> str:
        """Return what is narrowed, and to how much."""
        return ", ".join(f"{one.name}: {len(one.kept)} of {one.before}" for one in self.tables)

    def change(self, number: int) -> Change:
        """Return what narrows the tensors of a table."""
        kept = self.get_buffer(f"kept_{number}")
        return lambda tensor: tensor.index_select(self.tables[number].axis, kept)


def narrow_arguments(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Narrow what a module is called with, as its `KeptRotations` say: a hook before its forward."""
    kept: Any = getattr(module, CHILD)
    for number, (one, place) in enumerate(zip(kept.tables, kept.places, strict=True)):
        given, named = renamed(given, named, one.name, place, partial(one.table.mapped, change=kept.change(number)))
    return given, named


def narrow_tables(model: nn.Module, tables: Sequence[NarrowTable]) -> None:
    """Narrow what a network's modules hold, and have what they are given narrowed before each call.

    Raises UnsupportedLayerError, or LayerNotFoundError, where the network does not have these tables.
    """
    for table in tables:
        if not table.argument:
            _narrow_held(model, table)
    for name in dict.fromkeys(table.module for table in tables if table.argument):
        module, own = holder_of(model, name), tuple(one for one in tables if one.argument and one.module == name)
        before = _kept_by(name, module)
        if before is None:
            module.register_forward_pre_hook(narrow_arguments, with_kwargs=True)
        every = (*(() if before is None else before.tables), *own)
        kept = KeptRotations(every, [place_of(module, one.name) for one in every]).train(module.training)
        device = next(one.device for one in module.parameters())
        setattr(module, CHILD, kept if device.type == "meta" else kept.to(device))


def tables_as_they_are(model: nn.Module, tables: Sequence[RotaryTable]) -> Callable[[], None]:
    """Return what undoes `narrow_tables`; a module that narrowed nothing narrows nothing again."""
    holders = [(table, holder_of(model, table.module)) for table in tables]
    before = [_kept_by(t.module, holder) if t.argument else getattr(holder, t.name) for t, holder in holders]

    def put_back() -> None:
        for (table, holder), own in zip(holders, before, strict=True):
            parent, _, child = table.module.rpartition(".")
            if table.argument:
                setattr(holder, CHILD, KeptRotations((), ()).train(holder.training) if own is None else own)
            else:
                if child:
                    setattr(model.get_submodule(parent), child, holder)
                setattr(holder, table.name, own)

    return put_back


def holder_of(model: nn.Module, name: str) -> nn.Module:
    """Return a module, or the network itself for an empty name; raises LayerNotFoundError."""
    return module_of(model, name) if name else model


def _kept_by(name: str, module: nn.Module) -> KeptRotations | None:
    kept = getattr(module, CHILD, None)
    if kept is not None and not isinstance(kept, KeptRotations):
        raise UnsupportedLayerError(f"layer '{name}': has a '{CHILD}' of its own: rename it")
    return kept


def _narrow_held(model: nn.Module, table: NarrowTable) -> None:
    """Narrow a tensor that a module holds; the module is copied where others call it too."""
    holder = holder_of(model, table.module)
    shared = sum(module is holder for _, module in model.named_modules(remove_duplicate=False)) > 1
    if shared:
        parent, _, child = table.module.rpartition(".")
        holder = copy.deepcopy(holder)
        setattr(model.get_submodule(parent), child, holder)
    tensor = getattr(holder, table.name, None)
    if tensor is None:  # computed when it is needed, from another table
        return
    if not isinstance(tensor, torch.Tensor) or tensor.ndim < -table.axis or tensor.shape[table.axis] != table.before:
        raise UnsupportedLayerError(
            f"layer '{table.module}': its '{table.name}' must be a tensor of {table.before} entries along axis "
            f"{table.axis}, and is not"
        )
    kept = torch.tensor(table.kept, device=tensor.device)
    setattr(holder, table.name, like(tensor, tensor.detach().index_select(table.axis, kept)))
