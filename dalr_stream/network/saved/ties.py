"""Parameters that lie in one memory under several names, as an output layer and its embeddings do.

A network that is built anew may tie what was given numbers of its own before it was compressed. So a saved network says
what was tied in it, and all else is untied in the one that is built for loading.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def tied_parameters(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several, in the network's order."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def untie(model: nn.Module, tied: Iterable[Iterable[str]]) -> None:
    """Give parameters numbers of their own that are tied in `model`, but not by the groups of names `tied`."""
    group_of = {name: number for number, group in enumerate(tied) for name in group}
    for names in tied_parameters(model):
        parts: dict[int | str, list[str]] = {}
        for name in names:
            parts.setdefault(group_of.get(name, name), []).append(name)
        for part in list(parts.values())[1:]:
            old = model.get_parameter(part[0])
            own = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
            for name in part:
                owner, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(owner), attribute, own)
