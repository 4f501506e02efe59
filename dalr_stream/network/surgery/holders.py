"""Whether a network still holds a layer that was replaced: in a list, a bound method, a closure, beside its modules.

Surgery changes the tree of modules. A network that also keeps a layer elsewhere, as in `self.order = [self.fc0,
self.fc1]`, goes on calling the old one, and a copy with a function that was closed over the original calls the
original's. So all that can be reached from the network is looked through, whatever holds it; what was replaced must not
be there, nor a tensor in the memory of its parameters.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import BuiltinMethodType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError

_CLOSED = (type, ModuleType, FrameType, CodeType, str, bytes)
"""What is not looked into: a class or a Python module is no part of one network."""
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_REGISTRIES = ("_modules", "_parameters", "_buffers")


Named = Iterable[tuple[str, nn.Module]]


def require_released(network: nn.Module, replaced: Named) -> None:
    """Raise UnsupportedLayerError where `network` still holds one of the modules `replaced`, or one of its tensors."""
    _require_not_held(network, dict(replaced), others_only=False)


def require_held_once(network: nn.Module, layers: Named) -> None:
    """Raise UnsupportedLayerError where `network` has other tensors in the memory of the weights of its `layers`.

    A copy of the network would have copies of those, in memory of their own.
    """
    _require_not_held(network, dict(layers), others_only=True)


def _require_not_held(network: nn.Module, layers: Mapping[str, nn.Module], *, others_only: bool) -> None:
    own = {name: list(module.parameters(recurse=False)) for name, module in layers.items()}
    memories = {_memory(parameter): name for name, parameters in own.items() for parameter in parameters}
    memories.pop(0, None)  # of a tensor without memory
    allowed = {id(parameter) for parameters in own.values() for parameter in parameters} if others_only else set()
    modules = {} if others_only else {id(module): name for name, module in layers.items()}
    for held in _reachable(network):
        layer = modules.get(id(held.thing))
        if layer is None and isinstance(held.thing, torch.Tensor) and id(held.thing) not in allowed:
            layer = memories.get(_memory(held.thing))
        if layer is not None:
            raise UnsupportedLayerError(
                f"layer '{layer}': cannot be replaced: the network also holds it in {held.place}, and would go on "
                "using it there: hold it as a submodule alone, and look it up there in forward"
            )


def modules_by_name(network: nn.Module) -> dict[str, nn.Module]:
    """Return a network's modules as they are now, to be compared with those that it has after surgery."""
    return dict(network.named_modules(remove_duplicate=False))


def replaced_modules(before: Mapping[str, nn.Module], network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of `before` that are no longer in the network's tree, by name."""
    here = set(network.modules())
    return [(name, module) for name, module in before.items() if module not in here]


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds beside its submodules, parameters and buffers, by name."""
    return {name: value for name, value in vars(module).items() if name not in _REGISTRIES}


def locks_in(network: nn.Module) -> list[Any]:
    """Return the locks that a network holds, directly or not, such as those of an event or a condition."""
    return [member for held in _reachable(network) for _, member in _members(held.thing) if isinstance(member, _LOCKS)]


def held_tensors(network: nn.Module) -> Iterator[tuple[torch.Tensor, str]]:
    """Yield every tensor that a network holds, directly or not, and the attribute through which."""
    return ((held.thing, held.place) for held in _reachable(network) if isinstance(held.thing, torch.Tensor))


@dataclass(frozen=True, slots=True)
class _Held:
    """Something that can be reached, and the attribute of a module through which."""

    thing: Any
    place: str


def _reachable(network: nn.Module) -> Iterator[_Held]:
    """Yield all that the network holds, directly or not, each once."""
    names = {id(module): name for name, module in network.named_modules()}
    waiting, seen = deque([_Held(network, "itself")]), {id(network)}
    while waiting:
        holder = waiting.popleft()
        yield holder
        for attribute, thing in _members(holder.thing):
            if id(thing) not in seen and not isinstance(thing, _CLOSED) and gc.is_tracked(thing):
                seen.add(id(thing))
                name = names.get(id(holder.thing))
                of = "" if not name else f" of '{name}'"
                waiting.append(_Held(thing, holder.place if name is None else f"its attribute '{attribute}'{of}"))


def _members(thing: Any) -> Iterable[tuple[str, Any]]:
    """Return what an object holds, with the name of the attribute where it has one."""
    if isinstance(thing, torch.Tensor):
        return ()
    if isinstance(thing, nn.Module):
        parts = (*thing._modules.items(), *thing._parameters.items(), *thing._buffers.items())  # noqa: SLF001
        return (*own_attributes(thing).items(), *parts)
    if isinstance(thing, FunctionType):
        closed_over = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        held = [*closed_over, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), vars(thing)]
        return ((thing.__qualname__, value) for value in held)
    if isinstance(thing, MethodType | BuiltinMethodType):
        return (("__self__", thing.__self__), ("__func__", getattr(thing, "__func__", None)))
    if isinstance(thing, partial):
        return (("func", thing.func), ("args", thing.args), ("keywords", thing.keywords))
    return (("", value) for value in gc.get_referents(thing))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def _memory(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers lie; 0 for one that has none."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):  # a subclass without memory of its own
        return 0
