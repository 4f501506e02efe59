"""Why a layer cannot be replaced although it is of a kind that can: what the replacement would drop or change unseen.

Capture merely works beside all of these; `compress` refuses, before anything is copied, and says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from dalr_stream.errors import NonFiniteError, UnsupportedLayerError

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks",
)  # fmt: skip
"""Where a module keeps what others hung on it; not those of loading, which mend weights saved in an older form."""


def require_replaceable(model: nn.Module, names: Iterable[str]) -> None:
    """Raise UnsupportedLayerError for the first of the modules `names` that another one cannot take the place of.

    Modules that are not there are left to those who look for them.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name in modules:
            for reason in _reasons(model, modules, name):
                raise UnsupportedLayerError(f"layer '{name}': cannot be replaced: {reason}")


def require_range(name: str, dtype: torch.dtype, *arrays: NDArray[np.floating]) -> None:
    """Raise NonFiniteError where numbers of the layer's replacement do not fit into `dtype`."""
    largest = max((float(np.abs(array).max()) for array in arrays if array.size), default=0.0)
    limit = torch.finfo(dtype).max
    if not largest <= limit:
        raise NonFiniteError(
            f"layer '{name}': its replacement must fit into {dtype}, up to {limit:g}, and holds {largest:g}: compress "
            "the network in a wider dtype, or call at_rank(k, balanced=True)"
        )


def require_finite_weights(name: str, layer: nn.Module) -> None:
    """Raise NonFiniteError where a narrowed layer's numbers became too large for its dtype."""
    for parameter in layer.parameters():
        if not parameter.isfinite().all():
            raise NonFiniteError(
                f"layer '{name}': its weights with what they restore of the channels that are gone must fit into "
                f"{parameter.dtype}, up to {torch.finfo(parameter.dtype).max:g}: call at_size with a larger ridge, or "
                "compress the network in a wider dtype"
            )


def _reasons(model: nn.Module, modules: dict[str, nn.Module], name: str) -> Iterator[str]:
    module = modules[name]
    aliases = [other for other, same in modules.items() if same is module and other != name]
    if aliases:
        yield f"it is also registered as '{aliases[0]}', which would stay as it is: register a copy there first"
    for own, other in _tied(model, name):
        yield (
            f"'{own}' is shared with '{other}', and one of them would change alone: give it numbers of its own first, "
            "as nn.Parameter(tensor.detach().clone())"
        )
    for parameter, parts in _parametrised(module):
        yield (
            f"its {parameter} is computed by {parts}: take that away first, with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    for place in _HOOKS:
        for hook in getattr(module, place, {}).values():
            yield f"it has the {place.strip('_').removesuffix('s').replace('_', ' ')} {_called(hook)}: remove it first"
    if "forward" in vars(module):
        yield f"its forward was replaced by {_called(vars(module)['forward'])}: put its own back first"


def _tied(model: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """Yield each parameter of a module with another of the network that lies in the same memory."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {key: tensor for key, tensor in parameters.items() if key.rpartition(".")[0] == name}
    for key, tensor in own.items():
        yield from ((key, other) for other, it in parameters.items() if other != key and _same_memory(it, tensor))


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (_begins_at(one) == _begins_at(other) != 0 and one.numel() > 0 and other.numel() > 0)


def _parametrised(module: nn.Module) -> Iterator[tuple[str, str]]:
    if parametrize.is_parametrized(module):
        chains: Any = module.parametrizations
        for parameter, chain in chains.items():
            yield parameter, ", ".join(type(part).__name__ for part in chain)


def _called(hook: Any) -> str:
    """Return what a hook is called: a function's name, or the class of an object."""
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"'{named.__module__}.{named.__qualname__}'"


def _begins_at(tensor: torch.Tensor) -> int:
    """Return where a tensor's numbers begin; 0 for one without memory of its own, such as a sparse one."""
    try:
        return tensor.data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0
