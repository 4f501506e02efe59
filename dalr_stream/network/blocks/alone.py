"""Pieces of a network as networks of their own, each called with what one forward pass calls it with.

What is proved of a network on an example, that a layer can be replaced or which channels hang together, can be proved
of one piece while nothing else is in memory. Layers have the names that they have in the whole network, and so has what
is found of them, or refused.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.batches import call, few_samples, inputs_copied, samples_in
from dalr_stream.network.capture.reading import without_gradients

FEW = 2
"""Samples that pieces are called with, as `structure.graph.EXAMPLES`."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A piece as a network, and what it is called with."""

    network: nn.Module
    example: Mapping[str, torch.Tensor]


class _Piece(nn.Module):
    """Calls a module of a network, which it has under the name that it has there."""

    def __init__(self, name: str, module: nn.Module, given: _Given) -> None:
        super().__init__()
        *above, last = name.split(".")
        parent: nn.Module = self
        for part in above:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, module)
        self._name, self._given = name, given

    def forward(self, **samples: torch.Tensor) -> Any:
        arguments, keywords = self._given.with_samples(samples)
        return self.get_submodule(self._name)(*arguments, **keywords)


@dataclass(slots=True)
class _Given:
    """What a module was called with: tensors of a row a sample apart, by where they stand, and all else."""

    arguments: list[Any]
    keywords: dict[str, Any]
    samples: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: tuple[Any, ...], keywords: Mapping[str, Any], count: int) -> _Given:
        given = cls([*map(_copied, arguments)], {name: _copied(value) for name, value in keywords.items()})
        for place, value in (*enumerate(given.arguments), *given.keywords.items()):
            if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
                given.samples[f"argument_{place}"] = value
        return given

    def with_samples(self, samples: Mapping[str, torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
        arguments = [samples.get(f"argument_{place}", value) for place, value in enumerate(self.arguments)]
        return arguments, {name: samples.get(f"argument_{name}", value) for name, value in self.keywords.items()}


class AlonePieces:
    """Pieces of a network on their own, each as long as it is needed."""

    def __init__(self, model: nn.Module, pieces: Pieces, given: Mapping[str, _Given]) -> None:
        self._model, self._pieces, self._given = model, pieces, given

    @classmethod
    def of(
        cls, model: nn.Module, batch: Any, pieces: Pieces, wanted: Collection[str], *, whole: bool = False
    ) -> AlonePieces:
        """See what the pieces `wanted` are called with; cost: a forward pass of two samples, or of the `whole` batch.

        Raises UnsupportedLayerError for a piece that is not called.
        """
        with uncached(model):
            given = _given(model, batch if whole else few_samples(batch, FEW), wanted)
        missing = next((piece for piece in wanted if piece not in given), None)
        if missing is not None:
            raise UnsupportedLayerError(f"'{missing}' is never called in a forward pass: leave its layers out")
        return cls(model, pieces, given)

    @contextmanager
    def piece(self, name: str) -> Iterator[Alone]:
        """Give one of them, with its numbers."""
        with self._pieces.present([name]):
            yield self.here(name)

    def here(self, name: str) -> Alone:
        """Return one of them that is in memory."""
        given = self._given[name]
        network = _Piece(name, self._model.get_submodule(name), given)
        network.training = False  # its parts are as they are
        return Alone(network, given.samples)


def _given(model: nn.Module, batch: Any, wanted: Collection[str]) -> dict[str, _Given]:
    """Return what each piece is called with first."""
    found: dict[str, _Given] = {}
    count = samples_in(batch)

    def reading(piece: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            found.setdefault(piece, _Given.of(arguments, keywords, count))

        return hook

    with ExitStack() as stack, without_gradients():
        for piece in wanted:
            module = model.get_submodule(piece)
            stack.callback(module.register_forward_pre_hook(reading(piece), with_kwargs=True).remove)
        call(model, inputs_copied(batch))
    return found


def _copied(value: Any) -> Any:
    """Copy the tensors in what a module is given: some are overwritten later."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copied(member) for name, member in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else copy.copy(value)
