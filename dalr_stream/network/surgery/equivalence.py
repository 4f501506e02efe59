"""The proof of a compressed network: between the layers that surgery changed, it computes what the original does.

Both are run on one batch, with the same random numbers. What a changed layer reads must be what it reads in the
original, less the channels that are gone; it then gives what it gives in the original, less those that are gone, so
that every stretch is compared by itself, however coarse the compression. Each is called exactly as often as it was:
where the network goes on calling an old layer, or reads a weight without calling the layer, that shows here. So does
what counts channels, numbers them, or brings a tensor as wide as they were, which the proof of a group, on the
original, cannot see.
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
from dalr_stream.network.capture.batches import call, first_argument, tensors_in
from dalr_stream.network.capture.reading import same_draws, without_gradients
from dalr_stream.network.layers.kinds import CONVOLUTIONS, channels_read
from dalr_stream.network.structure.proof import ROUNDING, quiet, same
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
    except Exception as error:  # noqa: BLE001  # the original ran: whatever it is comes of the surgery
        check.refuse(
            f"the network fails without them ({type(error).__name__}: {error}): where it has their number written into "
            "it, as view(-1, 256) has, let it take that from the tensor",
            f"the network fails with its replacement ({type(error).__name__}: {error})",
        )
    check.require_all_called()
    if len(outputs) != len(expected) or not all(map(_alike, outputs, expected)):
        check.refuse(
            "the network's output depends on how many there are, or on their numbers",
            "the network's output depends on it by other ways than through what it gives",
        )


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
            for span in (reader.span for reader in group.readers):
                whole = np.ones(channels_read(self._changed[span.layer]), np.bool_)
                gone = np.delete(span.places(group.channels), kept, axis=0)
                self._stay.setdefault(span.layer, whole)[gone] = False

    def run(self, network: nn.Module, example: Any, *, compare: bool = False) -> list[torch.Tensor]:
        """Return the network's outputs; remember the calls of its changed layers, or `compare` them."""
        with ExitStack() as stack:
            stack.enter_context(quiet(network))
            stack.enter_context(same_draws(network))
            for name in self._changed:
                module = network.get_submodule(name)
                reading = self._comparing(name) if compare else self._remembering(name)
                stack.callback(module.register_forward_pre_hook(reading, with_kwargs=True).remove)
                giving = self._replacing(name) if compare else self._keeping(name)
                stack.callback(module.register_forward_hook(giving).remove)
            with without_gradients():
                return [tensor.clone() for tensor in tensors_in(call(network, example))]

    def refuse(self, of_channels: str, of_layer: str) -> NoReturn:
        """Raise UnsupportedLayerError with the reason for selections, or that for layers replaced as they are."""
        named = ", ".join(f"'{name}'" for name in self._selections or sorted(self._changed))
        if self._selections:
            raise UnsupportedLayerError(f"layer {named}: its channels cannot be pruned: {of_channels}")
        raise UnsupportedLayerError(f"layer {named}: cannot be replaced: {of_layer}")

    def require_all_called(self) -> None:
        """Raise UnsupportedLayerError where a changed layer was called less often than in the original."""
        for name, outputs in self._given.items():
            if outputs:
                self._refuse_calls(name, f"{len(outputs)} times less")

    def _refuse_calls(self, name: str, how_often: str) -> NoReturn:
        raise UnsupportedLayerError(
            f"layer '{name}': cannot be replaced: what takes its place is called {how_often} than it was in the "
            "original: the network holds the old one elsewhere, or asks of what class it is: let it call its submodule"
        )

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
            if not self._read[name]:
                self._refuse_calls(name, "more often")
            if not _alike(first_argument(arguments, keywords), self._read[name].pop(0)):
                self.refuse(
                    f"what '{name}' reads depends on how many there are, or on their numbers",
                    f"what '{name}' reads is not what it reads in the original",
                )

        return hook

    def _replacing(self, name: str) -> Any:
        return lambda *_: self._given[name].pop(0)


def _narrow(module: nn.Module, tensor: torch.Tensor, kept: NDArray[np.int64]) -> torch.Tensor:
    """Copy the channels, or features, `kept`."""
    return tensor.index_select(1 if isinstance(module, CONVOLUTIONS) else -1, torch.from_numpy(kept).to(tensor.device))


def _alike(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    steps = ROUNDING_STEPS * torch.finfo(expected.dtype).eps
    return actual.shape == expected.shape and bool(same(actual, expected, max(ROUNDING, steps)).all())
