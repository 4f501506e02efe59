"""Whether a network goes on using a copy of a weight that was replaced: one that it cached beside its modules.

Such a tensor has memory of its own, so nothing shows where it came from; that it holds the very numbers does. It is
refused only where the network's outputs depend on it, which not-a-numbers in its place show. Parameters and buffers of
the state dict are let be, whatever their numbers: they are saved and loaded with the network, as it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.surgery.holders import Named, held_tensors


@dataclass(frozen=True, slots=True)
class _Copy:
    layer: str
    place: str
    tensor: torch.Tensor


def require_no_copy_used(network: nn.Module, replaced: Named, prove: Callable[[], None]) -> None:
    """Raise UnsupportedLayerError where `network` uses a copy of the weight of one of the layers `replaced`.

    `prove` raises UnsupportedLayerError where the network's outputs are not what they should be; they are. Cost: a look
    at each tensor beside the state dict; where copies are found, the proof once more for each.
    """
    for copy in list(_copies(network, replaced)):
        with _not_a_number(copy.tensor):
            try:
                prove()
            except UnsupportedLayerError:
                raise UnsupportedLayerError(
                    f"layer '{copy.layer}': cannot be replaced: the network keeps a copy of its weight in "
                    f"{copy.place}, and would go on using it: let forward call the submodule, or register the copy as "
                    "a buffer"
                ) from None


def _copies(network: nn.Module, replaced: Named) -> Iterator[_Copy]:
    """Yield tensors beside the state dict that hold the weight of a layer, as it is, turned or among others."""
    weights = [(name, matrix_of(module).detach()) for name, module in replaced if _has_matrix(module)]
    weights = [(name, weight) for name, weight in weights if bool((weight != weight.flatten()[0]).any())]
    saved = {id(tensor) for tensor in (*network.parameters(), *network.state_dict(keep_vars=True).values())}
    for tensor, place in held_tensors(network):
        if id(tensor) not in saved and tensor.is_floating_point() and tensor.ndim > 1:
            rows = tensor.detach().reshape(len(tensor), -1)
            for name, weight in weights:
                if _holds(rows, weight) or _holds(rows.T, weight):
                    yield _Copy(name, place, tensor)
                    break


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim > 1


def _holds(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Tell whether rows (n, d) have those of `weight` (m, d) one below the other somewhere."""
    m, d = weight.shape
    if rows.shape[1] != d or len(rows) < m:
        return False
    same = weight.to(rows)
    first: Iterable[int] = (rows[: len(rows) - m + 1] == same[0]).all(dim=1).nonzero().flatten().tolist()
    return any(torch.equal(rows[start : start + m], same) for start in first)


@contextmanager
def _not_a_number(tensor: torch.Tensor) -> Iterator[None]:
    """Fill a tensor with not-a-numbers, and put its own back."""
    own = tensor.detach().clone()
    with torch.no_grad():
        tensor.detach().fill_(torch.nan)
        try:
            yield
        finally:
            tensor.detach().copy_(own)
