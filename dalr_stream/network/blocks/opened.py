"""Opens a network without reading its weights: they stay in their files until a piece of it is to run.

The caller's function builds it. Meanwhile `torch.empty`, which parameters are made with, takes no memory, and all else
is computed as ever: buffers that are not saved with the weights, such as a rotary embedding's frequencies, have their
numbers. Whether the files fit the network is found out from their headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.saved.shards import Shards
from dalr_stream.network.saved.ties import tied_parameters
from dalr_stream.network.torch_library import usable_device


def open_network(build: Callable[[], nn.Module], weights: str | Path, *, device: str = "cpu") -> nn.Module:
    """Return a network whose weights stay on disk and are read piece by piece.

    Blocks are pieces, the members of a transformer's `ModuleList` of layers say, and so is each module beside them.
    `accumulate` runs it block by block. Called as it is, it runs whole, each piece read as it is called.

    Parameters
    ----------
    build
        Makes the network, of any weights: `lambda: AutoModelForCausalLM.from_config(config)`. Its parameters take no
        memory.
    weights
        A safetensors file, an index of several, or a folder that `save_pretrained` of transformers wrote. Numbers are
        converted to the type that the network is built in: build it in half precision to keep that.
    device
        Where the pieces are brought to run: `cpu`, `cuda` or `cuda:1`.

    Returns
    -------
    torch.nn.Module
        What `build` made, in eval mode, its pieces' parameters on the meta device.

    Raises
    ------
    StoreNotFoundError, StoreDamagedError
        Where a file is missing or damaged.
    FingerprintMismatchError
        Where a tensor is missing, left over or of another shape, or the index does not say what the files hold.
    InvalidInputError
        Where `build` is a network, or makes a buffer without numbers that no file has.

    See Also
    --------
    accumulate : takes such a network.

    Examples
    --------
    >>> from pathlib import Path
    >>> import torch, dalr_stream as ds
    >>> def build():
    ...     return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> ds.network.save_weights(build(), Path("weights.safetensors"))
    >>> model = ds.open_network(build, "weights.safetensors")
    >>> model[0].weight.device.type
    'meta'
    >>> statistics = ds.accumulate(model, [torch.randn(32, 6)], ds.watch(model, ["0", "2"]), store="blocks.zarr")
    >>> statistics["2"].inputs.features
    12
    """
    if isinstance(build, nn.Module):
        raise InvalidInputError(
            f"open_network: needs a function that makes the network, got a {type(build).__name__}, which is in memory "
            "already: give its class, or lambda: ..."
        )
    with _taking_no_memory():
        model = build()
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"open_network: build must return a torch module, got {type(model).__name__}")
    shards = Shards.open(Path(weights))
    stored_as = _stored_as(model, shards)
    where = usable_device(device)
    pieces = Pieces(model)
    pieces.attach(shards, stored_as, where)
    _fill_the_rest(model, pieces, shards, stored_as)
    return model.eval()


class _Unfilled(TorchFunctionMode):
    """Puts tensors that are to be filled in yet on the meta device."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Change where `torch.empty` makes them, unless it is told a place."""
        kwargs = dict(kwargs or {})
        if function in (torch.empty, torch.empty_strided) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


@contextmanager
def _taking_no_memory() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), _Unfilled():
        yield


def _stored_as(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Return under which name each tensor of a network's state is stored; raises FingerprintMismatchError."""
    state: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    buffers = [name for name, _ in model.named_buffers() if name not in state]  # older files hold some, as computed
    known = [*state, *buffers]
    names = min((known, *_renamed(known, prefix)), key=lambda stored: len(set(stored) ^ set(shards.files)))
    stored = dict(zip(state, names, strict=False))
    for group in tied_parameters(model):
        there = [stored[name] for name in group if stored[name] in shards.files]
        _require_equal(shards, there)
        stored |= {name: there[0] for name in group if there}
    missing = [name for name, one in stored.items() if one not in shards.files]
    left = sorted(set(shards.files) - set(names))
    shapes = [
        f"'{name}' is {_shape(shards.shapes[one])} there and {_shape(state[name].shape)} in the network"
        for name, one in stored.items()
        if one in shards.shapes and shards.shapes[one] != tuple(state[name].shape)
    ]
    wrong = [*(f"'{name}' is missing" for name in missing), *(f"'{name}' is left over" for name in left), *shapes]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise FingerprintMismatchError(
            f"'{shards.head}' does not fit the network that was built: {wrong[0]}{more}: build the network that the "
            "weights are of"
        )
    return stored


def _renamed(state: Sequence[str], prefix: str) -> Iterator[list[str]]:
    """Yield the names that a transformers model's weights may have, saved with its head or without."""
    if prefix != ".":
        yield [f"{prefix}{name}" for name in state]
        yield [name.removeprefix(prefix) for name in state]


def _require_equal(shards: Shards, names: Sequence[str]) -> None:
    """Raise FingerprintMismatchError where tensors that the network has as one differ on disk."""
    for name in names[1:]:
        if name != names[0] and not torch.equal(shards.tensor(name), shards.tensor(names[0])):
            raise FingerprintMismatchError(
                f"'{shards.head}': '{names[0]}' and '{name}' are one tensor in the network that was built and two "
                "different ones there: build it without tying them"
            )


def _fill_the_rest(model: nn.Module, pieces: Pieces, shards: Shards, stored_as: Mapping[str, str]) -> None:
    """Read what is part of no piece, and buffers; raises InvalidInputError where something has no numbers."""
    for name, parameter in model.named_parameters():
        if pieces.holding(name) is None:
            numbers = shards.tensor(stored_as[name]).to(pieces.device, parameter.dtype)
            _set(model, name, nn.Parameter(numbers, requires_grad=parameter.requires_grad))
    for name, buffer in model.named_buffers():
        if name in stored_as:
            _set(model, name, shards.tensor(stored_as[name]).to(pieces.device, buffer.dtype))
        elif not buffer.is_meta:
            _set(model, name, buffer.to(pieces.device))
        else:
            raise InvalidInputError(
                f"open_network: buffer '{name}' has no numbers: the weights do not hold it, and the network was built "
                "with it on the meta device, or leaves it to be filled in: build it as usual, without "
                "torch.device('meta'), and let its constructor compute it"
            )


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, tensor)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
