"""Modules that overwrite in place what they are given, where something else uses that afterwards.

Such a module must run for the others to see what it wrote, and a pass that begins after it does not run it. Whether the
numbers of one batch come out the same does not tell: a mask that one block completes for all of them may be complete
already. So the tensors are looked at, not their numbers: torch counts how often each was overwritten. What was is then
spoilt once its module is done, and the network must give the same all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from dalr_stream.network.capture.resuming.given import is_plain, mapped, tensors_in


@contextmanager
def overwriting(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, None]]:
    """Note which of these modules overwrite what they are called with."""
    found: dict[str, None] = {}
    with _calls_of(model, names, lambda name, *_: found.update({name: None})):
        yield found


@contextmanager
def spoiling(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Spoil what these modules overwrite as soon as each is done; what they give stays."""
    with _calls_of(model, names, lambda _, overwritten, output: _spoilt(overwritten, output)):
        yield


@contextmanager
def _calls_of(model: nn.Module, names: Collection[str], done: Any) -> Iterator[None]:
    """Call `done` with each call's module, tensors that it overwrote and what it gives; it may give something else."""
    begun: list[list[tuple[torch.Tensor, int]]] = []

    def before(_: nn.Module, arguments: Any, keywords: Any) -> None:
        begun.append([(one, one._version) for one in tensors_in((arguments, keywords)) if _is_counted(one)])  # noqa: SLF001

    def after(name: str, output: Any) -> Any:
        overwritten = [one for one, version in begun.pop() if one._version != version]  # noqa: SLF001
        return done(name, overwritten, output) if overwritten else None

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hook = module.register_forward_hook(lambda _, __, output, name=name: after(name, output))
            stack.callback(hook.remove)
        yield


def _is_counted(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_inference()


def _spoilt(overwritten: list[torch.Tensor], output: Any) -> Any:
    if not is_plain(output):
        return None
    places = {one.untyped_storage().data_ptr() for one in overwritten}
    copies: dict[int, torch.Tensor] = {}

    def own(tensor: torch.Tensor) -> torch.Tensor:
        within = tensor.untyped_storage().data_ptr() in places
        return copies.setdefault(id(tensor), tensor.clone() if within else tensor)

    given = mapped(output, own)
    for one in overwritten:
        if one.dtype == torch.bool:
            one.logical_not_()
        else:
            one.fill_(float("nan") if one.is_floating_point() or one.is_complex() else 0)
    return given
