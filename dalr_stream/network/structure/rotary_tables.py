"""What positions are rotated by: tensors that an attention is given, or holds, with entries for each pair.

Cosines and sines, complex turns or frequencies: whatever it is, an entry belongs to one pair. Which tensors these are
is not read off names. They are as wide as there are rotated dimensions, or pairs, and what the attention gives depends
on them; that entries are a pair's is seen with others in their place, equal for the entries of a pair and drawn at
random for tokens and pairs: a frequency that turns a few tokens by nothing to be seen does then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn

from dalr_stream.network.structure.changed import Change

LARGEST = 1e30
"""Beyond that a number stands for infinity, in masks."""
SEED = 15


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """One argument or attribute, and the tensors of it that have `width` entries along an axis."""

    module: str
    name: str
    argument: bool
    """Of each call of the module; else its attribute."""
    axis: int
    """From the last one: -1, -2."""
    width: int
    """R, or R/2."""
    tiled: bool = True
    """Of R entries, i and i + R/2 are a pair's; else 2i and 2i + 1."""

    def entries_of(self, pairs: Sequence[int], rotated: int) -> tuple[int, ...]:
        """Return the entries of some pairs of R/2, in the order in which a table of these alone has them."""
        if self.width != rotated:
            return tuple(pairs)
        if self.tiled:
            return (*pairs, *(pair + rotated // 2 for pair in pairs))
        return tuple(2 * pair + part for pair in pairs for part in (0, 1))

    def holds(self, tensor: object) -> bool:
        """Tell whether a tensor is one of the table's."""
        return _is_of_numbers(tensor) and axis_of(tensor, (self.width,)) == self.axis  # by shape alone: it is traced

    def mapped(self, value: Any, change: Change) -> Any:
        """Return an argument or attribute with each of its tensors that is the table's changed."""
        if type(value) in (list, tuple):
            return type(value)(self.mapped(member, change) for member in value)
        return change(value) if self.holds(value) else value


def axis_of(tensor: torch.Tensor, widths: Sequence[int]) -> int | None:
    """Return the last axis, of the last two, that is one of `widths` long, from the end; None where none is."""
    return next((axis for axis in (-1, -2) if tensor.ndim >= -axis and tensor.shape[axis] in widths), None)


def tables_given(modules: Sequence[tuple[str, nn.Module]], run: Callable[[], Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield module, name and value of each argument that holds tensors, of the calls of `modules` in a run."""
    seen: dict[tuple[str, str], Any] = {}
    with ExitStack() as stack:
        for name, module in modules:

            def record(called: nn.Module, given: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
                seen.update({(name, key): value for key, value in by_name(called, given, named).items()})

            stack.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
        run()
    return ((*place, value) for place, value in seen.items() if any(True for _ in tensors_of(value)))


def tables_held(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, str, Any]]:
    """Yield module, name and value of each attribute of `modules` that is a tensor; frequencies may be learned."""
    for name, module in modules:
        registered = {**module._buffers, **module._parameters}  # noqa: SLF001  # beside plain tensors
        held: Mapping[str, Any] = {**vars(module), **registered}
        for attribute, value in held.items():
            if _is_of_numbers(value) and _is_finite(value):
                yield name, attribute, value


def by_name(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a module is called with, by the names of its parameters."""
    return dict(zip(inspect.signature(module.forward).parameters, given, strict=False)) | dict(named)


def renamed(
    given: tuple[Any, ...], named: dict[str, Any], name: str, place: int, change: Change
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the one of that name, or at its place, changed, where it is there."""
    if name in named:
        return given, {**named, name: change(named[name])}
    if not 0 <= place < len(given):
        return given, named
    return (*given[:place], change(given[place]), *given[place + 1 :]), named


def place_of(module: nn.Module, name: str) -> int:
    """Return where a module takes an argument that is given by position; -1 where it takes none of that name."""
    places = [*inspect.signature(module.forward).parameters]
    return places.index(name) if name in places else -1


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of numbers in an argument."""
    if type(value) in (list, tuple):
        for member in value:
            yield from tensors_of(member)
    elif _is_of_numbers(value) and _is_finite(value):
        yield value


def like(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return other numbers as what a module holds: a parameter in the place of one."""
    return nn.Parameter(other.detach(), requires_grad=own.requires_grad) if isinstance(own, nn.Parameter) else other


@contextmanager
def disturbed(model: nn.Module, tables: Sequence[RotaryTable], rotated: int, *, first: int = 0) -> Iterator[None]:
    """Put numbers drawn at random in the place of the tables', equal for the entries of each pair; from `first` on."""
    with ExitStack() as stack:
        for number, table in enumerate(tables):
            module, change = model.get_submodule(table.module), _drawn(table, rotated, first, SEED + number)
            if table.argument:

                def hook(
                    called: nn.Module,
                    given: tuple[Any, ...],
                    named: dict[str, Any],
                    name: str = table.name,
                    change: Callable[[Any], Any] = change,
                ) -> Any:
                    return renamed(given, named, name, place_of(called, name), change)

                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                own = getattr(module, table.name)
                stack.callback(setattr, module, table.name, own)
                setattr(module, table.name, like(own, change(own)))
        yield


def _drawn(table: RotaryTable, rotated: int, first: int, seed: int) -> Callable[[Any], Any]:
    """Return what draws other numbers for the pairs of a table from `first` on, the same each time."""
    places = torch.empty(table.width, dtype=torch.long)
    for pair in range(rotated // 2):
        places[list(table.entries_of([pair], rotated))] = pair

    def of(value: Any) -> Any:
        generator = torch.Generator().manual_seed(seed)

        def draw(tensor: torch.Tensor) -> torch.Tensor:
            shape = list(tensor.shape)
            shape[table.axis] = rotated // 2
            drawn = (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)).to(tensor.dtype)
            if tensor.is_complex():
                drawn = drawn * torch.exp(6j * torch.rand(shape, generator=generator, dtype=torch.float64))
            other = (tensor.abs().max().cpu() * drawn).to(tensor).index_select(table.axis, places.to(tensor.device))
            kept = (places < first).to(tensor.device)
            return torch.where(kept if table.axis == -1 else kept[:, None], tensor, other)

        return table.mapped(value, draw)

    return of


def _is_of_numbers(value: object) -> TypeGuard[torch.Tensor]:
    """Tell whether a value is a tensor of real or complex numbers."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _is_finite(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 0 and not tensor.is_meta and bool(tensor.abs().max() < LARGEST)
