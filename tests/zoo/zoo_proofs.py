"""The columns of the table, each a proof of its own on one architecture.

A number is how far two things that must be equal are apart, relative to the largest entry. What the library refuses is
a line of its own; what is neither a number small enough nor such a line is an error of the library, and shown as one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from zoo_case import Architecture
from zoo_exports import compiled, exported, generated
from zoo_rows import SINGLE, apart, counted, read_by, routed_positions, rows_of, run, tensors_of

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.network.layers.kinds import has_weights, why_not

EXACT = 1e-9
EVERY_ROW = ds.Folding(holdout=ds.HoldoutRule(0.0))


@dataclass
class Found:
    """What one architecture showed."""

    layers: int = 0
    """That have weights."""
    watched: int = 0
    replaced: int = 0
    values: dict[str, float | str] = field(default_factory=dict)
    """By column: how far apart, or why there is nothing to compare."""
    refused: dict[str, str] = field(default_factory=dict)
    """Layer -> the line that says why."""
    groups: int = 0
    """Of channels that can be selected."""
    unprunable: dict[str, str] = field(default_factory=dict)
    """Layer -> why its channels cannot be."""
    errors: list[str] = field(default_factory=list)
    """What should not be."""

    def put(self, column: str, value: float | str, most: float = EXACT) -> None:
        """Note what a proof gave; a number above `most` is an error."""
        self.values[column] = value
        if isinstance(value, float) and not value <= most:
            self.errors.append(f"{column}: {value:.1e} apart")


def prove(one: Architecture, folder: Path, *, exports: bool = True) -> Found:
    """Return what is proved of an architecture; its compressed network and outputs are kept in `folder`."""
    found, net = Found(), one.network()
    with quietly():
        before = [tensor.clone() for tensor in tensors_of(run(net, one.batch))]
        layers = watched_layers(net, found)
        moments = measured(one, net, layers, found)
        small = compressed(one, net, moments, found)
        if small is None:
            return found
        found.put("full rank", apart(tensors_of(run(small, one.batch)), before))
        attempt(found, "all nodes", lambda: selected(net, one, found))
        if apart(tensors_of(run(net, one.batch)), before):
            found.errors.append("the network is not what it was")
        keep(small, one, folder)
        if one.generates:
            attempt(found, "generate", lambda: generated(net, small, one))
        if exports:
            attempt(found, "compiled", lambda: compiled(net, small, one))
            attempt(found, "ONNX", lambda: exported(net, small, one), SINGLE)
    return found


@contextmanager
def quietly() -> Any:
    """Warnings of others, and that full rank has more parameters, which is the point here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def attempt(found: Found, column: str, proof: Callable[[], float | str], most: float = EXACT) -> None:
    try:
        found.put(column, proof(), most)
    except Exception as error:  # noqa: BLE001  # the table shows it
        found.values[column] = "ERROR"
        found.errors.append(f"{column}: {one_line(error)}")


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def watched_layers(net: nn.Module, found: Found) -> list[Any]:
    """Return the layers that can be watched, group by group; what cannot be is refused by name."""
    modules = [(name, module) for name, module in net.named_modules() if has_weights(module)]
    found.layers = len(modules)
    layers = []
    for name, module in modules:
        reason = why_not(module)
        if reason is None:
            layers += ds.network.select_layers(net, [name])
        else:
            found.refused[name] = reason
    return layers


def measured(one: Architecture, net: nn.Module, layers: list[Any], found: Found) -> dict[str, ds.Moments]:
    """Accumulate the layers, leaving out one after another that is refused; compare each with its hand-made Gram."""
    rule, moments = ds.RowRule(mask=one.mask, most_patches=None), {}
    while layers:
        try:
            moments = dict(accumulate_stream(net, [one.batch], layers, rows=rule, folding=EVERY_ROW))
            break
        except ds.DalrStreamError as error:
            layers = without(layers, error, found)
        except Exception as error:  # noqa: BLE001  # the table shows it
            found.errors.append(f"moments: {one_line(error)}")
            break
    found.watched = len({name.partition("@")[0] for name in moments})
    read = read_by(net, one.batch, sorted({name.partition("@")[0] for name in moments}))
    worst = 0.0
    for name, record in moments.items():
        layer, _, group = name.partition("@group")
        module = net.get_submodule(layer)
        routed = routed_positions(net, one.batch, layer)
        calls = [counted(one, layer, rows_of(module, tensor, int(group or 0)), routed) for tensor in read[layer]]
        rows = torch.cat(calls).double().numpy()
        if record.count != len(rows):
            found.errors.append(f"moments: '{name}' has {record.count} rows, by hand {len(rows)}")
            continue
        gram, mine = rows.T @ rows / len(rows), record.second_moment
        off = float(np.abs(mine - gram).max() / max(np.abs(gram).max(), 1e-300))
        worst = max(worst, off)
        if off > EXACT:
            found.errors.append(f"moments: '{name}' is {off:.1e} off")
    if moments:
        found.put("moments", worst)
    return moments


def without(layers: list[Any], error: ds.DalrStreamError, found: Found) -> list[Any]:
    """Leave out the layer that an error names; an error that names none is noted, and ends it."""
    message = str(error).splitlines()[0]
    named = [layer for layer in layers if f"'{layer.name}'" in message or f"'{layer.stream}'" in message]
    if not named:
        found.errors.append(f"moments: no layer is named in: {one_line(error)}")
        return []
    module = named[0].name.partition("@")[0]
    found.refused[module] = message
    return [layer for layer in layers if layer.name.partition("@")[0] != module]


def compressed(one: Architecture, net: nn.Module, moments: Mapping[str, Any], found: Found) -> nn.Module | None:
    """Replace every layer that can be at full rank, leaving out one after another that is refused."""
    pairs = {}
    for name, record in moments.items():
        factors = ds.dalr(*ds.network.weights_of(net, name), record)
        pairs[name] = factors.at_rank(factors.max_rank)
    while pairs:
        try:
            small = ds.compress(net, pairs, example=one.batch)
        except ds.DalrStreamError as error:
            message = str(error).splitlines()[0]
            named = next((name for name in pairs if f"'{name.partition('@')[0]}'" in message), None)
            if named is None:
                found.errors.append(f"compress: no layer is named in: {one_line(error)}")
                return None
            module = named.partition("@")[0]
            found.refused[module] = message
            pairs = {name: pair for name, pair in pairs.items() if name.partition("@")[0] != module}
        except Exception as error:  # noqa: BLE001  # the table shows it
            found.errors.append(f"compress: {one_line(error)}")
            return None
        else:
            found.replaced = len({name.partition("@")[0] for name in pairs})
            return small
    return None


def selected(net: nn.Module, one: Architecture, found: Found) -> float | str:
    """Return how far the network is whose every group of channels keeps all of them; a reason where there is none."""
    names = [name for name, module in net.named_modules() if has_weights(module) and why_not(module) is None]
    layers = ds.watch(net, names, example=one.batch)
    found.unprunable = {layer.name: layer.unprunable for layer in layers if layer.unprunable}
    groups = {layer.name: layer.group for layer in layers if layer.group is not None}
    chosen = {}
    for name, group in groups.items():
        streams = {reader.stream for reader in group.readers}
        specs = [layer for layer in layers if layer.stream in streams]
        try:
            moments = accumulate_stream(net, [one.batch], specs, rows=ds.RowRule(most_patches=None), folding=EVERY_ROW)
        except ds.DalrStreamError as error:
            found.unprunable[name] = str(error).splitlines()[0]
            continue
        joint = ds.spectral(group.joint(moments))
        chosen[name] = joint.at_size(joint.nodes)
    found.groups = len(chosen)
    if not chosen:
        return "no group"
    small = ds.compress(net, chosen, example=layers.structure)
    return apart(tensors_of(run(small, one.batch)), tensors_of(run(net, one.batch)))


def keep(small: nn.Module, one: Architecture, folder: Path) -> None:
    """Save the compressed network, with what it gives, for `reloaded` in another process."""
    ds.save(small, folder / "network")
    torch.save(tensors_of(run(small, one.batch)), folder / "outputs.pt")


def reloaded(one: Architecture, folder: Path) -> float | str:
    """Return how far a network that is loaded here is from what it gave where it was saved."""
    with quietly():
        loaded = ds.load(folder / "network", one.network)
        return apart(tensors_of(run(loaded, one.batch)), torch.load(folder / "outputs.pt"))
