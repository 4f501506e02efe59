"""The check of a narrowed network: between the layers that surgery changed, it computes what the original does.

Both are run on one batch. What a changed layer reads must be what it reads in the original, less the channels that are
gone; it then gives what it gives in the original, less those that are gone, so that every stretch is compared by
itself, however coarse the compression. What counts channels, numbers them, or brings a tensor as wide as they were,
shows here: the proof of a group, on the original, cannot see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.batches import call, first_argument
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.kinds import CONVOLUTIONS, channels_read
from dalr_stream.network.structure.proof import ROUNDING, quiet, same, tensors_in
from dalr_stream.numerics.statistics.channels import ChannelGroup

ROUNDING_STEPS = 8
"""Of the dtype, where that is more than the proof's rounding: one operation on a narrower tensor, in half precision."""
Selections = Mapping[str, tuple[ChannelGroup, NDArray[np.int64]]]
"""Layer name -> its channels' group, and the channels that stay."""


def require_as_before(
    model: nn.Module, small: nn.Module, changed: Iterable[str], selections: Selections, example: Any
) -> None:
    """Raise UnsupportedLayerError where `small` does anything else between the `changed` layers than `model` does.

    Cost: a forward pass of each.
    """
    check = _Check(model, set(changed), selections)
    expected = check.run(model, example)
    try:
        outputs = check.run(small, example, compare=True)
    except UnsupportedLayerError:
        raise
    except Exception as error:  # noqa: BLE001  # the original ran: whatever it is comes of the narrowing
        check.refuse(selections, f"the network fails without them ({type(error).__name__}: {error})")
    if len(outputs) != len(expected) or not all(map(_alike, outputs, expected)):
        check.refuse(selections, "the network's output depends on how many there are, or on their numbers")


class _Check:
    """Remembers the calls of the changed layers in the original, and compares those in the narrowed network."""

    def __init__(self, model: nn.Module, changed: set[str], selections: Selections) -> None:
        self._selections = selections
        self._changed = {name: model.get_submodule(name) for name in changed}
        self._read: dict[str, list[torch.Tensor]] = {name: [] for name in changed}
        self._given: dict[str, list[torch.Tensor]] = {name: [] for name in changed}
        self._stay: dict[str, NDArray[np.bool_]] = {}
        """Which of the features that a changed layer reads are left."""
        self._kept: dict[str, NDArray[np.int64]] = {}
        """The channels that a layer still gives."""
        for group, kept in selections.values():
            self._kept |= dict.fromkeys(group.producers, kept)
            left = np.isin(np.arange(group.channels), kept)
            for span in (reader.span for reader in group.readers):
                whole = np.ones(channels_read(self._changed[span.layer]), np.bool_)
                here = slice(span.start, span.start + group.channels * span.block)
                self._stay.setdefault(span.layer, whole)[here] = left.repeat(span.block)

    def run(self, network: nn.Module, example: Any, *, compare: bool = False) -> list[torch.Tensor]:
        """Return the network's outputs; remember the calls of its changed layers, or `compare` them."""
        with ExitStack() as stack:
            stack.enter_context(quiet(network))
            for name in self._changed:
                module = network.get_submodule(name)
                reading = self._comparing(name) if compare else self._remembering(name)
                stack.callback(module.register_forward_pre_hook(reading, with_kwargs=True).remove)
                giving = self._replacing(name) if compare else self._keeping(name)
                stack.callback(module.register_forward_hook(giving).remove)
            with without_gradients():
                return [tensor.clone() for tensor in tensors_in(call(network, example))]

    def refuse(self, layers: Iterable[str], reason: str) -> NoReturn:
        """Raise UnsupportedLayerError for selections of `layers`."""
        named = ", ".join(f"'{name}'" for name in layers)
        raise UnsupportedLayerError(f"layer {named}: its channels cannot be pruned: {reason}")

    def _remembering(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            read, stay = first_argument(arguments, keywords), self._stay.get(name)
            self._read[name].append(read.clone() if stay is None else _narrow(module, read, np.flatnonzero(stay)))

        return hook

    def _keeping(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: torch.Tensor) -> None:
            kept = self._kept.get(name)
            self._given[name].append(output.clone() if kept is None else _narrow(module, output, kept))

        return hook

    def _comparing(self, name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if not _alike(first_argument(arguments, keywords), self._read[name].pop(0)):
                self.refuse(self._selections, f"what '{name}' reads depends on how many there are, or on their numbers")

        return hook

    def _replacing(self, name: str) -> Any:
        return lambda *_: self._given[name].pop(0)


def _narrow(module: nn.Module, tensor: torch.Tensor, kept: NDArray[np.int64]) -> torch.Tensor:
    """Copy the channels, or features, `kept`."""
    return tensor.index_select(1 if isinstance(module, CONVOLUTIONS) else -1, torch.from_numpy(kept).to(tensor.device))


def _alike(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    steps = ROUNDING_STEPS * torch.finfo(expected.dtype).eps
    return actual.shape == expected.shape and bool(same(actual, expected, max(ROUNDING, steps)).all())
