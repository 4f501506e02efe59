"""Rows that a router sends to a layer: any number of them, of any samples, none at all. Whose they are is found out.

An expert is given some rows of what a module around it reads, the tokens of the block that routes them, in any order.
So its rows are looked up there, to the bit: a row's place in the block says of which sample and position it is. Layers
further inside an expert have the rows of its first one, in their order. Rows that are equal to the bit are routed
alike, and count in the order of their places.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.capture.batches import first_argument
from dalr_stream.numerics.rows.streams import module_name


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a call stand among those of the block that routes them."""

    numbers: NDArray[np.int64]
    """(n,): flat numbers, sample after sample."""
    positions: int
    """Of each sample."""


class Routes:
    """What the modules around some layers read in one forward pass, to look the layers' rows up in."""

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self._model = model
        self._around = {name: _modules_around(module_name(name)) for name in layers}
        self._reads: dict[str, torch.Tensor] = {}
        self._known: dict[int, tuple[torch.Tensor, dict[bytes, deque[int]]]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note of what these modules read; the hooks are gone when the block ends."""
        with ExitStack() as stack:
            for name in {name for around in self._around.values() for name in around}:
                module = self._model.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(self._noting(name), with_kwargs=True).remove)
            try:
                yield
            finally:
                self._reads.clear()
                self._known.clear()

    def places(self, layer: str, tensor: torch.Tensor, samples: int) -> Places:
        """Return where the rows that a layer reads come from; raises InvalidInputError where that is not known."""
        chain = [tensor, *(self._reads[name] for name in self._around[layer] if name in self._reads)]
        rows = _rows(tensor)
        for number, inner in enumerate(chain):
            if _rows(inner) != rows:
                break
            for outer in reversed(chain[number + 1 :]):
                routes = _rows(outer) > rows or len(outer) == samples  # an expert around its first layer does not
                if routes and outer.shape[-1] == inner.shape[-1] and _rows(outer) % samples == 0:
                    found = self._found(inner, outer)
                    if found is not None:
                        return Places(found, _rows(outer) // samples)
        raise InvalidInputError(
            f"layer '{layer}': gets {rows} rows for {samples} samples, which are not among those that a module around "
            "it reads, so that whose they are is not known: leave the layer out"
        )

    def _noting(self, name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = first_argument(arguments, keywords) if arguments or keywords else None
            if isinstance(given, torch.Tensor) and given.ndim > 1:
                self._reads[name] = given.detach()

        return hook

    def _found(self, inner: torch.Tensor, outer: torch.Tensor) -> NDArray[np.int64] | None:
        """Return the number of each row of `inner` in `outer`; None where one is not there."""
        if id(outer) not in self._known:
            places: dict[bytes, deque[int]] = {}
            for number, row in enumerate(_bytes(outer)):
                places.setdefault(row, deque()).append(number)
            self._known[id(outer)] = outer, places
        known, taken = self._known[id(outer)][1], dict[bytes, int]()
        numbers: list[int] = []
        for row in _bytes(inner):
            before = taken.get(row, 0)
            if before >= len(known.get(row, ())):
                return None
            numbers.append(known[row][before])
            taken[row] = before + 1
        return np.array(numbers, np.int64)


def _modules_around(name: str) -> list[str]:
    """Return the names of the modules around one, the nearest first."""
    around = []
    while name:
        name = name.rpartition(".")[0]
        around.append(name)
    return around


def _rows(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape[:-1])


def _bytes(tensor: torch.Tensor) -> Iterator[bytes]:
    flat = tensor.detach().cpu().reshape(-1, tensor.shape[-1]).contiguous()
    return (row.tobytes() for row in flat.view(torch.uint8).numpy())


def require_not_routed(stream: str, *, routed: bool) -> None:
    """Raise UnsupportedLayerError for a layer whose rows in two networks do not belong together: a router chooses."""
    if routed:
        raise UnsupportedLayerError(
            f"layer '{stream}': a router decides which rows reach it, and may send others where the network is "
            "compressed before it: solve it from its inputs alone, all layers at once"
        )
