"""A network's weights in one safetensors file, written whole and read strictly."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.fitting import read_into
from dalr_stream.network.saved.pickled import conversion, is_pickled, pickled_beside
from dalr_stream.network.saved.shards import Shards
from dalr_stream.storage.durable import make_folder, new_file

MADE_FROM = "made_from"


def save_weights(model: nn.Module, path: Path, *, made_from: str | None = None) -> None:
    """Write a network's weights as safetensors, in place of those that are there.

    Parameters
    ----------
    model
        Any network.
    path
        The file; its folder is made where it is missing.
    made_from
        A digest of what the weights were made from, for the file's header.

    See Also
    --------
    dalr_stream.save : keeps a compressed network with what rebuilds it.

    Examples
    --------
    >>> from pathlib import Path
    >>> import torch, dalr_stream as ds
    >>> ds.network.save_weights(torch.nn.Linear(4, 8), Path("weights.safetensors"))
    >>> ds.network.load_weights(torch.nn.Linear(4, 8), Path("weights.safetensors"))
    """
    require_tensors_alone(model)
    make_folder(path.parent)
    with new_file(path) as temporary, as_os_error():
        save_model(model, str(temporary), None if made_from is None else {MADE_FROM: made_from})


def require_tensors_alone(model: nn.Module) -> None:
    """Raise InvalidInputError where the state of a network is not all plain tensors: nothing else can be saved."""
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor) and value.is_meta:
            raise InvalidInputError(f"'{name}' is on the meta device, where it has no numbers: load the network whole")
        sparse = isinstance(value, torch.Tensor) and value.layout is not torch.strided
        if sparse or is_traceable_wrapper_subclass(value):
            what = "sparse tensor" if sparse else f"{type(value).__name__}, packed, quantised or sharded"
            raise InvalidInputError(
                f"'{name}' of the network's state is a {what}, and files of weights hold plain tensors: save the "
                "network before that is done, and do it again after loading"
            )
        if not isinstance(value, torch.Tensor):
            raise InvalidInputError(
                f"'{name}' of the network's state is a {type(value).__name__}, and files of weights hold tensors "
                "alone: let get_extra_state give a tensor, or hold it as an attribute that the constructor sets"
            )


@contextmanager
def as_os_error() -> Iterator[None]:
    """Raise what the operating system refused safetensors as the OSError it was: its own error has it in words only."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def weights_made_from(path: Path) -> str | None:
    """Return what `save_weights` was given; raises StoreNotFoundError, and StoreDamagedError for half a file."""
    if not path.exists():
        raise StoreNotFoundError(f"there are no weights at '{path}'")
    try:
        with safe_open(path, framework="pt") as file:
            made_from: str | None = (file.metadata() or {}).get(MADE_FROM)
    except (SafetensorError, OSError) as error:
        raise StoreDamagedError(f"'{path}' is not a readable safetensors file: {error}") from error
    return made_from


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights into `model`, strictly: every tensor there, none left over, every shape right.

    Parameters
    ----------
    model
        A network of the same structure; it is changed in place.
    path
        A safetensors file, such as `save_weights` writes, or the index of several.

    Raises
    ------
    StoreNotFoundError
        Where there is no such file.
    InvalidInputError
        For a file of `torch.save`, with how to convert it: unpickling could run code.
    StoreDamagedError
        Where it is not a readable safetensors file.
    FingerprintMismatchError
        Where the weights do not fit the network; names the first that does not.

    See Also
    --------
    dalr_stream.load : a compressed network.

    Examples
    --------
    >>> from pathlib import Path
    >>> import torch, dalr_stream as ds
    >>> one, other = torch.nn.Linear(4, 8), torch.nn.Linear(4, 8)
    >>> ds.network.save_weights(one, Path("weights.safetensors"))
    >>> ds.network.load_weights(other, Path("weights.safetensors"))
    >>> torch.equal(one.weight, other.weight)
    True
    """
    if not path.exists():
        raise StoreNotFoundError(f"there are no weights at '{path}'{pickled_beside(path)}")
    if is_pickled(path):
        raise InvalidInputError(f"'{path}' is a file of torch.save, which is not read: {conversion(path)}")
    if path.name.endswith(".json"):
        read_into(model, Shards.open(path))
        return
    try:
        load_model(model, path)
    except (SafetensorError, OSError) as error:
        raise StoreDamagedError(f"'{path}' is not a readable safetensors file: {error}") from error
    except RuntimeError as error:
        raise FingerprintMismatchError(
            f"'{path}' does not fit the network that was built: {_first_mismatch(str(error))}"
        ) from error


def _first_mismatch(message: str) -> str:
    """Return the first of what torch says does not fit, a line for each kind, and how many more there are."""
    head, *lines = message.splitlines()
    mismatches: list[str] = []
    for line in map(str.strip, lines):
        keys = re.findall('"([^"]+)"', line)
        mismatches += [f"{line.partition(' key')[0].lower()} '{key}'" for key in keys] or [line.removesuffix(".")]
    return (mismatches or [head])[0] + (f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else "")
