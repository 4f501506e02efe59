"""The proof that rows which a router sends to layers are whose they are taken for: with one sample changed, or padding.

What a layer is given is looked up in the block that routes it, in two passes over batches that differ in some places.
From all other places the same rows must come, no more and no fewer: an expert of limited room, in which one sample's
tokens take the place of another's, is found by this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.network.capture.batches import first_argument
from dalr_stream.network.capture.proofs.observed import ROUNDING, projections
from dalr_stream.network.capture.routed import Routes
from dalr_stream.network.layers.groups import part_of
from dalr_stream.network.layers.kinds import CONVOLUTIONS, rows_entering, rows_leaving
from dalr_stream.network.layers.spec import LayerSpec, module_of
from dalr_stream.numerics.rows.streams import Side, module_name

Unchanged = Callable[[NDArray[np.int64], int], NDArray[np.bool_]]
"""Tells of places, by their flat numbers and the positions of each sample, whether the same stands there."""


@dataclass(slots=True)
class RoutedRows:
    """The projections of a layer's rows in one pass, each with its place."""

    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    projections: list[torch.Tensor] = field(default_factory=list)
    positions: int = 1

    def same_as(self, other: RoutedRows, unchanged: Unchanged) -> bool:
        """Tell whether from unchanged places the same rows came."""
        one, two = self._unchanged(unchanged), other._unchanged(unchanged)
        if not np.array_equal(one[0], two[0]):
            return False
        scale = float(one[1].abs().max()) if len(one[0]) else 0.0
        return bool(torch.isclose(two[1], one[1], rtol=0.0, atol=ROUNDING * scale, equal_nan=True).all())

    def _unchanged(self, unchanged: Unchanged) -> tuple[NDArray[np.int64], torch.Tensor]:
        if not self.numbers:
            return np.zeros(0, np.int64), torch.zeros(0)
        numbers, rows = np.concatenate(self.numbers), torch.cat(self.projections).cpu()
        keep = np.flatnonzero(unchanged(numbers, self.positions))
        keep = keep[np.argsort(numbers[keep], kind="stable")]
        return numbers[keep], rows[torch.from_numpy(keep)]


@contextmanager
def routed_pass(model: nn.Module, layers: Sequence[LayerSpec], samples: int) -> Iterator[dict[str, RoutedRows]]:
    """Collect the projections of the rows of layers that are routed to, in one forward pass; see `Routes.places`."""
    routes = Routes(model, [layer.name for layer in layers])
    seen = {layer.stream: RoutedRows() for layer in layers}
    with routes.watching(), ExitStack() as stack:
        for layer in layers:
            module = module_of(model, module_name(layer.name))
            hook = _hook(layer, part_of(layer.name, module), routes, samples, seen[layer.stream])
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield seen


def _hook(layer: LayerSpec, part: nn.Module, routes: Routes, samples: int, seen: RoutedRows) -> Any:
    def left(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], outputs: torch.Tensor) -> None:
        read = first_argument(arguments, keywords)
        places = routes.places(layer.name, read, samples)
        rows = rows_leaving(part, outputs) if layer.at_outputs else rows_entering(layer.name, part, read)
        seen.numbers.append(places.numbers)
        seen.projections.append(projections(rows))
        seen.positions = places.positions

    return left


def of_others(sample: int) -> Unchanged:
    """Tell the places of all samples but one."""
    return lambda numbers, positions: np.not_equal(numbers // positions, sample)


def counted(mask: torch.Tensor) -> Unchanged:
    """Tell the places that a mask (N, T) keeps."""
    flat: NDArray[np.bool_] = mask.numpy().ravel()
    return lambda numbers, _: np.take(flat, numbers)


def may_be_routed(model: nn.Module, layer: LayerSpec) -> bool:
    """Tell whether a layer's rows are those of the tensor that it reads, and no patches or channels of it."""
    part = part_of(layer.name, module_of(model, module_name(layer.name)))
    return layer.side is not Side.CHANNELS and not isinstance(part, CONVOLUTIONS)


def kinds_of(names: Iterable[str]) -> set[str]:
    """Return the layers' names without their numbers, in which the experts of a block differ."""
    return {re.sub(r"\d+", "#", name) for name in names}
