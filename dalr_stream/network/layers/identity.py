"""What identifies a network, a tensor and a member of a batch: digests by which runs are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a network: its modules' names, classes and settings, and every parameter and buffer.

    Settings are what a module's class declares in `__constants__`, as torch's own do: a slope, an epsilon, a padding
    mode. What else a module remembers may be a count of its calls, and says nothing of what it computes.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__name__}{_settings(module)};".encode())
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= model.named_buffers(remove_duplicate=False)  # the state dict lacks those that are not persistent
    require_numbers(model)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor_digest(tensor)};".encode())
    return digest.hexdigest()


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the declared constants that are numbers, words, or tuples of them."""
    declared = ((name, getattr(module, name, None)) for name in getattr(module, "__constants__", ()))
    return sorted((name, value) for name, value in declared if _is_plain(value))


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, int | float | str)


def require_numbers(model: nn.Module) -> None:
    """Raise InvalidInputError where a tensor of the network has a shape alone: never loaded, or offloaded elsewhere."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InvalidInputError(
                f"network: '{name}' is on the meta device, where it has no numbers: load the weights, or keep them in "
                "memory and not offloaded"
            )


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
