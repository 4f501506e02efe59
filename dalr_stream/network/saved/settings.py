"""What decides a network's outputs beside the weights that are saved: compared with the network that is built to load.

A factory may set another epsilon, leave out an attribute that was set by hand, or make a table of another base; some
networks (RWKV) rescale their own weights the first time they run, and remember it in a flag. Weights would be loaded
all the same, and the outputs be others. Settings are those of `layers.identity.settings`; buffers that are not saved
are compared by a random projection, as another machine may compute their last digits otherwise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.layers.identity import settings

_LONGEST = 64
"""Longer values are kept as a digest."""
_CLOSE = 1e-4
"""Of a table's size, and of a fraction: another machine's last digits are far below, another setting is far above."""
_SEED = 13


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Return the settings of each module, JSON-like; modules of equal settings share them."""
    kinds: dict[str, int] = {}
    values: list[dict[str, Any]] = []
    modules: dict[str, int] = {}
    for name, module in model.named_modules():
        found = _settings(module)
        modules[name] = kinds.setdefault(repr(found), len(kinds))
        if len(kinds) > len(values):
            values.append(found)
    return {"values": values, "modules": modules}


def require_same_settings(
    model: nn.Module, saved: Mapping[str, Any], folder: Path, but_for: Container[tuple[str, str]] = ()
) -> None:
    """Raise FingerprintMismatchError where a module of `model` is not set as it was when it was saved.

    What either of them lacks is not compared: another version of a library may have it, or not. Values before and now
    that are among `but_for` may differ.
    """
    for name, module in model.named_modules():
        number = saved["modules"].get(name)
        before: Mapping[str, Any] = {} if number is None else saved["values"][number]
        for setting, now in _settings(module).items():
            known = setting not in before or (not isinstance(now, list) and (before[setting], now) in but_for)
            if not known and not _same(before[setting], now):
                where = f"'{name}' ({type(module).__name__})" if name else type(module).__name__
                raise FingerprintMismatchError(
                    f"'{folder}' does not fit the network that was built: {where} was saved with {setting} = "
                    f"{_shown(before[setting])} and is built with {_shown(now)}, which decides what it computes: let "
                    "the function that builds it set it so"
                )


def _settings(module: nn.Module) -> dict[str, Any]:
    words = {name: value if len(value) <= _LONGEST else _digest(value) for name, value in settings(module)}
    return {**dict(_unsaved_tensors(module)), **words}


def _unsaved_tensors(module: nn.Module) -> Iterator[tuple[str, list[float]]]:
    """Yield the shape of each tensor that the state dict lacks, its size and a projection.

    These are buffers that are not saved, and plain attributes. One that has another shape is not compared: tables may
    grow as they are used.
    """
    lacking: set[str] = getattr(module, "_non_persistent_buffers_set", set())  # it has no public name
    buffers = {name: buffer for name, buffer in module.named_buffers(recurse=False) if name in lacking}
    for name, buffer in {**vars(module), **buffers}.items():
        if isinstance(buffer, torch.Tensor) and not buffer.is_complex() and buffer.layout is torch.strided:
            flat = buffer.detach().cpu().double().reshape(-1).nan_to_num(posinf=1.0, neginf=-1.0)
            direction = torch.randn(flat.numel(), generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
            size = float(flat.norm()) / max(flat.numel(), 1) ** 0.5
            yield name, [*map(float, buffer.shape), size, float(direction @ flat) / max(flat.numel(), 1) ** 0.5]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        (*shape, size, projection), (*now, new_size, new_projection) = one, other
        close = math.isclose(size, new_size, rel_tol=_CLOSE)
        return shape != now or (close and math.isclose(projection, new_projection, abs_tol=_CLOSE * (1 + size)))
    if one == other or not isinstance(one, str) or not any(mark in one for mark in ".e"):
        return bool(one == other)
    try:
        return math.isclose(float(one), float(other), rel_tol=_CLOSE)
    except ValueError:
        return False


def _shown(value: Any) -> str:
    return f"numbers of size {value[-2]:.4g}" if isinstance(value, list) else str(value)


def _digest(value: str) -> str:
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]}"
