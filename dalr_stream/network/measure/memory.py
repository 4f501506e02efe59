"""What a forward pass holds beside the network and its batch, as torch's own tensors show it.

Every operation's results are looked at as they are made, and each memory counts once, until nothing refers to it.
Memory that an operation takes and gives back within itself, as some convolutions do, is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dalr_stream.network.capture.batches import call, inputs_of
from dalr_stream.network.capture.reading import without_gradients


@dataclass(frozen=True, slots=True)
class ForwardMemory:
    """Of one batch."""

    peak_bytes: int
    """The most that was there at once: what a forward pass without gradients holds."""
    total_bytes: int
    """All that was made on the way: about what a pass that gradients go back through keeps."""


def forward_memory(model: nn.Module, batch: Any) -> ForwardMemory:
    """Run the network on one batch and return what that holds beside parameters, buffers and the batch."""
    return memory_of(model, batch, lambda: call(model, batch))


def memory_within(model: nn.Module, batch: Any, modules: Collection[str]) -> int:
    """Run the network on one batch and return all that is made within the one of some modules that makes most."""
    watch = _watching(model, batch)
    begun, most = dict[str, int](), 0

    def enter(name: str) -> None:
        begun[name] = watch.total

    def leave(name: str) -> None:
        nonlocal most
        most = max(most, watch.total - begun[name])

    with ExitStack() as stack:
        for name in modules:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(lambda *_, name=name: enter(name)).remove)
            stack.callback(module.register_forward_hook(lambda *_, name=name: leave(name)).remove)
        with without_gradients(), watch:
            call(model, batch)
    return most


def memory_of(model: nn.Module, batch: Any, work: Callable[[], object]) -> ForwardMemory:
    """Do some work on a batch and return what that holds beside parameters, buffers and the batch."""
    watch = _watching(model, batch)
    with without_gradients(), watch:
        work()
    return ForwardMemory(watch.peak, watch.total)


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _watching(model: nn.Module, batch: Any) -> _Memories:
    """Follow what is made beside parameters, buffers and the batch."""
    leaves = [*model.parameters(), *model.buffers(), *tree_leaves(inputs_of(batch))]
    return _Memories([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])


class _Memories(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch annotates no part of it
    """Follows every memory that results lie in, but for those of `known` tensors."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.total = 0
        self._known = {_reference(tensor): 0 for tensor in known}
        self._live: dict[Any, int] = {}

    def __torch_dispatch__(
        self, function: Callable[..., Any], _types: Any, arguments: Sequence[Any] = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        self._live = {reference: size for reference, size in self._live.items() if not reference.expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        self.peak = max(self.peak, sum(self._live.values()))
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        reference = _reference(tensor)
        if reference not in self._known and reference not in self._live:
            self._live[reference] = tensor.untyped_storage().nbytes()
            self.total += self._live[reference]


def _reference(tensor: torch.Tensor) -> Any:
    weakly: Any = StorageWeakRef  # torch annotates no part of it
    return weakly(tensor.untyped_storage())
