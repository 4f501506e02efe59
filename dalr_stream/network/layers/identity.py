"""What identifies a network, a tensor and a member of a batch: digests by which runs are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.storage.contents import NO_BIAS


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a network: its modules' names, classes and settings, every parameter and buffer, and its config.

    Settings are what decides the outputs beside the weights; see `settings`. Networks that differ in them alone, an
    adapter switched off or another epsilon, are other networks.
    """
    elsewhere = weights_elsewhere(model)
    if elsewhere is None:
        require_numbers(model)
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__name__}{settings(module)};".encode())
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= model.named_buffers(remove_duplicate=False)  # the state dict lacks those that are not persistent
    weights: dict[str, Any] = {name: value for name, value in model.state_dict().items() if _is_weight(value)}  # packed
    for name, weight in sorted({**tensors, **weights}.items()):
        absent = elsewhere is not None and isinstance(weight, torch.Tensor) and weight.is_meta
        told = elsewhere.digest(name) if elsewhere is not None and absent else digest_of_member(weight)
        digest.update(f"{name}:{told};".encode())
    return digest.hexdigest()


def settings(module: nn.Module) -> list[tuple[str, str]]:
    """Return what is set on a module, by name, and may decide what it computes.

    These are its class's `__constants__`; attributes that are fractions, flags or words, or hold such; whole numbers
    and tensors under the name of an argument of its constructor; and the numbers of its `config`. A count of calls or a
    tensor kept from the last one are none of these: they change as the network runs, and say nothing of what it is.
    """
    own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    arguments = signature(type(module).__init__).parameters
    declared = {name: getattr(module, name, None) for name in getattr(module, "__constants__", ())}
    declared |= {name: value for name, value in own.items() if name in arguments or name.lstrip("_") in arguments}
    words = {name: value for name in declared if (value := _whole(declared[name])) is not None}
    words |= {name: value for name in own if not _is_place(name) and (value := _parts(own[name])) is not None}
    config = getattr(module, "config", None)
    words |= {f"config.{name}": value for name, value in _numbers_of(config).items()}
    return sorted(words.items())


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLACES = ("name", "path", "dir", "file", "folder", "device", "version", "dtype", "hf_", "_hf", "revision")
"""In the names of attributes that say where a network is kept or runs, and not what it computes."""
_OF_RUNNING = ("use_cache", "return_dict", "output_", "transformers_version", "_")
"""How the names of a config's entries begin that say what is returned beside the outputs."""


def _is_weight(value: object) -> bool:
    """Tell the tensors of a state dict, and tuples of them as quantised layers keep them."""
    if isinstance(value, tuple):
        return all(member is None or isinstance(member, torch.Tensor) for member in value)
    return isinstance(value, torch.Tensor)


def _is_place(name: str) -> bool:
    return any(word in name.lower() for word in _PLACES)


def _whole(value: object) -> str | None:
    """Return a constant in words: a number, a word or a tensor, or a tuple, list or mapping of these; else None."""
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
        return digest_of_member(value)
    if isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, Mapping) and value:
        members = {str(key): _whole(member) for key, member in value.items()}
        return None if None in members.values() else repr(sorted(members.items()))
    if isinstance(value, tuple | list) and value:
        parts = [_whole(member) for member in value]
        return None if None in parts else repr(parts)
    return None


def _parts(value: object) -> str | None:
    """Return fractions, flags and words, alone or in a container, in words; None for what may count as it runs."""
    if isinstance(value, bool | float | complex | str):
        return repr(value)
    if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        members = {key: _parts(member) for key, member in value.items()}
        return None if None in members.values() else repr(sorted(members.items()))
    if isinstance(value, tuple | list | set | frozenset) and value:
        parts = [_parts(member) for member in value]
        return None if None in parts else repr(sorted(map(str, parts)) if isinstance(value, set | frozenset) else parts)
    return None


def _numbers_of(config: object) -> dict[str, str]:
    """Return the numbers of a config that say what a network computes, also of those within it."""
    numbers: dict[str, str] = {}
    for name, value in getattr(config, "__dict__", {}).items():
        if name.startswith(_OF_RUNNING):
            continue
        if isinstance(value, bool | int | float):
            numbers[name] = repr(value)
        elif name.endswith("config") and value is not config:
            numbers |= {f"{name}.{inner}": number for inner, number in _numbers_of(value).items()}
    return numbers


def require_numbers(model: nn.Module) -> None:
    """Raise InvalidInputError where a tensor of the network has no numbers: not loaded, offloaded, or not made."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InvalidInputError(
                f"network: '{name}' has no shape before a batch went through: run the network once first"
            )
        if tensor.is_meta:
            remedy = "load the weights, or keep them in memory and not offloaded"
            if weights_elsewhere(model) is not None:
                remedy = "its weights are read block by block, which is not done here: load the network whole"
            raise InvalidInputError(f"network: '{name}' is on the meta device, where it has no numbers: {remedy}")


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes; of a quantised or sparse one's values."""
    if tensor.layout is not torch.strided:
        return hashlib.sha256(f"{tensor.layout}:{tensor_digest(tensor.to_dense())}".encode()).hexdigest()
    if tensor.is_quantized:
        return hashlib.sha256(f"{tensor.dtype}:{tensor_digest(tensor.dequantize())}".encode()).hexdigest()
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def bias_digest(layer: nn.Module) -> str:
    """Return the digest of a layer's bias, or what says that it has none."""
    bias: Any = layer.bias
    return NO_BIAS if bias is None else tensor_digest(bias)


def digest_of_member(value: Any) -> str:
    """Return what identifies a member of a batch: the digest of every tensor and array in it, and the rest in words."""
    if isinstance(value, torch.Tensor):
        return tensor_digest(value)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return digest_of_member(value.tolist())
    if isinstance(value, np.ndarray):
        return hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key!r}:{digest_of_member(member)}' for key, member in value.items())}}}"
    return f"[{','.join(map(digest_of_member, value))}]" if isinstance(value, list | tuple) else repr(value)


def identity_of(of: Any) -> str:
    """Return what identifies a loss function, or an argument of one."""
    if isinstance(of, partial):
        members = [*enumerate(of.args), *sorted(of.keywords.items())]
        return f"{identity_of(of.func)}({', '.join(f'{name}={identity_of(member)}' for name, member in members)})"
    if not callable(of):
        return digest_of_member(of)
    named = of if hasattr(of, "__qualname__") else type(of)
    name = f"{named.__module__}:{named.__qualname__}"
    return f"{name}({fingerprint(of)})" if isinstance(of, nn.Module) else name
