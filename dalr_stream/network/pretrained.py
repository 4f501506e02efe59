"""Weights as `save_pretrained` of transformers keeps them: a folder, with one safetensors file or several and an index.

The library is not imported for it. Loading is strict, as for a single file: every tensor there, none left over; a tied
one is kept once.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.checkpoint import WEIGHTS, load_weights

INDEX = f"{WEIGHTS}.index.json"


def load_pretrained(model: nn.Module, path: Path) -> None:
    """Load weights into `model`, strictly, from a safetensors file or from a folder of `save_pretrained`.

    Raises StoreNotFoundError, StoreDamagedError, and FingerprintMismatchError where they do not fit the model.
    """
    found = weights_file(path)
    if found.name != INDEX:
        load_weights(model, found)
        return
    tensors: dict[str, torch.Tensor] = {}
    for name in _files_in(found):
        try:
            tensors |= load_file(found.parent / name)
        except FileNotFoundError:
            raise StoreNotFoundError(
                f"there are no weights at '{found.parent / name}', which '{found}' names"
            ) from None
        except SafetensorError as error:
            raise StoreDamagedError(f"'{found.parent / name}' is not a readable safetensors file: {error}") from error
    _load(model, tensors, found)


def weights_file(path: Path) -> Path:
    """Return the file that stands for the weights at `path`: in a folder `model.safetensors` or its index."""
    if not path.is_dir():
        return path
    return path / INDEX if (path / INDEX).exists() else path / WEIGHTS


def _files_in(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamagedError(f"'{index}' cannot be read: {error}") from error
    elsewhere = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if elsewhere:
        raise StoreDamagedError(f"'{index}' must name files beside it, got {elsewhere[0]!r}")
    return names


def _load(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise FingerprintMismatchError(f"'{path}' does not fit the network that was built: {error}") from error
    owners = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(owners[name]) for name in tensors if name in owners}
    missing = [name for name in missing if name not in owners or id(owners[name]) not in loaded]
    if missing or unexpected:
        raise FingerprintMismatchError(
            f"'{path}' does not fit the network that was built: missing {missing or 'none'}, left over "
            f"{unexpected or 'none'}"
        )
