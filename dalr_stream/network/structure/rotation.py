"""Which dimensions of queries and keys positions are rotated into, in which pairs, and by which tables.

Every tensor that could be a table says how many dimensions are rotated: as many as it has entries, or twice as many.
Pairs are then (i, i + R/2) or (2i, 2i + 1). What is proved is that a pair of queries, as a complex number, may be
multiplied by c and that of keys by 1/conj(c), and that the other dimensions mix freely, with the network's own tables
and with others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from dalr_stream.network.structure.rotary_tables import (
    RotaryTable,
    axis_of,
    disturbed,
    tables_given,
    tables_held,
    tensors_of,
)
from dalr_stream.numerics.heads.layout import HeadLayout


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """What positions do to heads."""

    layout: HeadLayout
    """With the dimensions that are rotated."""
    tables: tuple[RotaryTable, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class RotationSearch:
    """Looks for the rotation of one attention."""

    model: nn.Module
    layout: HeadLayout
    """Of its heads, as if nothing were rotated."""
    around: str
    run: Callable[[], torch.Tensor]
    """Return what the output layer reads."""
    is_mixed: Callable[[HeadLayout], bool]
    """Tell whether nothing changes where heads are mixed as those of a layout may be."""
    changes: Callable[[torch.Tensor, torch.Tensor], bool]
    """Tell whether the second of what was read is another."""

    def found(self) -> Rotation | None:
        """Return the rotation; None where there is none that could be narrowed."""
        for rotated, tables in self._candidates():
            used = _sets(self._used(tables, rotated))
            for interleaved in (False, True) if used else ():
                layout = dataclasses.replace(self.layout, rotated=rotated, interleaved=interleaved)
                if not self.is_mixed(layout):
                    continue
                for tiled, together in itertools.product((True, False), used):
                    laid = tuple(dataclasses.replace(table, tiled=tiled) for table in together)
                    with disturbed(self.model, laid, rotated):
                        mixed = self.is_mixed(layout)
                    if mixed and self._turns_the_last(laid, rotated):
                        return Rotation(layout, laid)
        return None

    def _turns_the_last(self, tables: Sequence[RotaryTable], rotated: int) -> bool:
        """Tell whether the last pair is turned by the tables: dimensions that are not would pass for a pair as well."""
        plain = self.run()
        with disturbed(self.model, tables, rotated, first=rotated // 2 - 1):
            return self.changes(plain, self.run())

    def _candidates(self) -> Iterator[tuple[int, list[RotaryTable]]]:
        """Yield how many dimensions may be rotated, most first, with all that may be tables of theirs then."""
        places = [(*place, True) for place in self._given()] + [(*place, False) for place in self._held()]
        lengths = {n for *_, value, _ in places for one in tensors_of(value) for n in one.shape[-2:]}
        for rotated in sorted({length * by for length in lengths for by in (1, 2)}, reverse=True):
            if rotated % 2 == 0 and 2 <= rotated <= self.layout.size:
                tables = [table for place in places for table in _tables(*place, rotated)]
                inner = _innermost(table for table in tables if table.argument)
                tables = [table for table in tables if not table.argument or table.module == inner]
                if tables:
                    yield rotated, tables

    def _given(self) -> Iterator[tuple[str, str, object]]:
        names, name = [], self.layout.queries
        while name != self.around:
            name = name.rpartition(".")[0]
            names.append(name)
        return tables_given([(name, self.model.get_submodule(name)) for name in names], self.run)

    def _held(self) -> Iterator[tuple[str, str, object]]:
        modules = self.model.get_submodule(self.around).named_modules(prefix=self.around, remove_duplicate=False)
        return tables_held([(name, module) for name, module in modules if name not in self.layout.layers])

    def _used(self, tables: Sequence[RotaryTable], rotated: int) -> list[RotaryTable]:
        """Return the tables on which something depends: attributes by modules, arguments one by one, and no layer's."""
        (plain, given), used = self._run_with_layers(), []
        for key in dict.fromkeys(map(_owner, tables)):
            own = [table for table in tables if _owner(table) == key]
            with disturbed(self.model, own, rotated):
                read, now = self._run_with_layers()
            read_by_layers = own[0].argument and not all(map(torch.equal, given, now))
            if self.changes(plain, read) and not read_by_layers:
                used += own
        return used

    def _run_with_layers(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what the output layer reads, and what those of queries, keys and values give."""
        given: list[torch.Tensor] = []
        with ExitStack() as stack:
            for name in self.layout.layers[:-1]:
                layer = self.model.get_submodule(name)
                stack.callback(layer.register_forward_hook(lambda *call: given.append(call[-1].clone())).remove)
            return self.run(), given


def _sets(used: Sequence[RotaryTable]) -> list[list[RotaryTable]]:
    """Return the tables that may be all there are: those that are given, those that are held, or both."""
    given, held = ([table for table in used if table.argument is argument] for argument in (True, False))
    return [one for one in (given, held) if one] + ([[*used]] if given and held else [])


def _owner(table: RotaryTable) -> tuple[str, str]:
    return table.module, table.name if table.argument else ""


def _innermost(tables: Iterator[RotaryTable]) -> str:
    return max((table.module for table in tables), key=len, default="")


def _tables(module: str, name: str, value: object, argument: bool, rotated: int) -> Iterator[RotaryTable]:  # noqa: FBT001
    """Yield the tables that an argument or attribute may be, where so many dimensions are rotated."""
    widths = rotated, rotated // 2
    places = [(axis_of(tensor, widths), tensor) for tensor in tensors_of(value)]
    for axis, width in dict.fromkeys((axis, tensor.shape[axis]) for axis, tensor in places if axis is not None):
        yield RotaryTable(module, name, argument, axis, width)
