"""Opens a network without reading its weights: they stay in their files until a piece of it is to run.

The caller's function builds it. Meanwhile `torch.empty`, which parameters are made with, takes no memory, and all else
is computed as ever: buffers that are not saved with the weights, such as a rotary embedding's frequencies, have their
numbers. Whether the files fit the network is found out from their headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.saved.files import PLAN
from dalr_stream.network.saved.fitting import require_same_types, stored_as
from dalr_stream.network.saved.plan_file import done_loading, read_plan, require_head, reshape
from dalr_stream.network.saved.shards import Shards
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
        converted to the type that the network is built in: build it in half precision to keep that. Or a folder of
        `save` or `compress_into`: `build` makes the original network then, in the type of those weights.
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
    pieces, saved = Pieces(model), _saved(model, Path(weights))
    shards = Shards.open(Path(weights)) if saved is None else saved
    stored = stored_as(model, shards)
    where = usable_device(device)
    if saved is not None:
        require_same_types(model, shards, stored)
    pieces.attach(shards, stored, where)
    _fill_the_rest(model, pieces, shards, stored)
    return model.eval() if saved is None else done_loading(model)


def _saved(model: nn.Module, folder: Path) -> Shards | None:
    """Give a network the shape of the compressed one in `folder` and return its weights; None where there is none."""
    if not (folder / PLAN).exists():
        return None
    plain = read_plan(folder)
    reshape(model, plain, folder)
    return Shards.open(require_head(folder, plain))


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


def _fill_the_rest(model: nn.Module, pieces: Pieces, shards: Shards, stored: Mapping[str, str]) -> None:
    """Read what is part of no piece, and buffers; raises InvalidInputError where something has no numbers."""
    for name, parameter in model.named_parameters():
        if pieces.holding(name) is None:
            numbers = shards.tensor(stored[name]).to(pieces.device, parameter.dtype)
            _set(model, name, nn.Parameter(numbers, requires_grad=parameter.requires_grad))
    for name, buffer in model.named_buffers():
        if name in stored:
            _set(model, name, shards.tensor(stored[name]).to(pieces.device, buffer.dtype))
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
