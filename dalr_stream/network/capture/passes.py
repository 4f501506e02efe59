"""Several passes over one loader: in which order they need the layers, and that each sees the same batches.

Layers that are compressed one after the other each need a pass, as what one reads depends on those called before it.
It does not where both read the very same tensor: the same object, with the same numbers in it, which nobody wrote to in
between. One pass serves those. What only looks independent, such as two branches, is not told from what is: it costs a
pass, never a mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, UnsupportedLayerError
from dalr_stream.network.capture.batches import call, digest_of_inputs, first_argument, samples_in
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.spec import layer_of


@dataclass(frozen=True, slots=True)
class _Read:
    """What a layer read. Holds the tensor, so that no other one can take its place in memory."""

    layer: str
    tensor: torch.Tensor
    version: int | None
    """How often it had been written to; None where torch does not count."""
    held: torch.Tensor
    """A copy of what it held then: it can also be written to without torch taking note."""

    @classmethod
    def of(cls, layer: str, tensor: torch.Tensor, before: _Read | None) -> _Read:
        """Describe what a layer reads now; what the one before it read is not copied again."""
        version = None if tensor.is_inference() else tensor._version  # noqa: SLF001  # torch has no public name for it
        known = before is not None and before.tensor is tensor and torch.equal(before.held, tensor)
        return cls(layer, tensor, version, before.held if before is not None and known else tensor.clone())

    def same_input(self, other: _Read) -> bool:
        same = self.tensor is other.tensor and self.version is not None and self.version == other.version
        return same and torch.equal(self.held, other.held)


def order_of_execution(model: nn.Module, batch: Any, layers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return `layers` in the order in which a forward pass calls them, neighbours that read one tensor together.

    Raises LayerNotFoundError, and UnsupportedLayerError for a layer that is called never or twice.
    """
    reads: list[_Read] = []
    with ExitStack() as stack, without_gradients():
        for name in layers:
            hook = _Hook(name, reads)
            stack.callback(layer_of(model, name).register_forward_pre_hook(hook, with_kwargs=True).remove)
        call(model, batch)
    called = [read.layer for read in reads]
    for name in layers:
        if called.count(name) != 1:
            raise UnsupportedLayerError(
                f"layer '{name}': must be called once in a forward pass, it is called {called.count(name)} times: "
                "leave it out, or solve all layers at once and not in `sequential` order"
            )
    groups: list[list[_Read]] = []
    for read in reads:
        if groups and groups[-1][0].same_input(read):
            groups[-1].append(read)
        else:
            groups.append([read])
    return tuple(tuple(read.layer for read in group) for group in groups)


class _Hook:
    def __init__(self, layer: str, reads: list[_Read]) -> None:
        self._layer = layer
        self._reads = reads

    def __call__(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        before = self._reads[-1] if self._reads else None
        self._reads.append(_Read.of(self._layer, first_argument(arguments, keywords), before))


def require_repeatable(batches: Iterable[Any], name: str) -> None:
    """Raise InvalidInputError for what can be gone through once only, a generator say."""
    if isinstance(batches, Iterator):  # not by calling iter(), which starts a loader's processes
        raise InvalidInputError(
            f"{name}: several passes go through them, a {type(batches).__name__} allows one: give a list, a "
            "DataLoader, or an object whose __iter__ starts over"
        )


class SameEveryPass:
    """A loader, each pass over which is compared with the first, batch by batch.

    Held-out samples are known by their numbers: in another order they would be other samples, and would be trained on.
    """

    def __init__(self, batches: Iterable[Any], name: str = "batches") -> None:
        """Raise InvalidInputError for what can be gone through once only, a generator say."""
        require_repeatable(batches, name)
        self._batches = batches
        self._name = name
        self._digests: list[str] = []
        self._complete = False

    def first(self) -> Any:
        """Return the first batch with a sample; raises InvalidInputError where there is none."""
        for batch in self._batches:
            if samples_in(batch):
                return batch
        raise InvalidInputError(f"{self._name}: gave no sample: check the data set, its split and its filters")

    def __iter__(self) -> Iterator[Any]:
        digests: list[str] = []
        for number, batch in enumerate(self._batches):
            digests.append(digest_of_inputs(batch))
            if self._complete and digests[-1:] != self._digests[number : number + 1]:
                raise FingerprintMismatchError(
                    f"{self._name}: batch {number} is not the one of the first pass: every pass needs the same "
                    "batches in the same order, so turn off shuffling and random augmentation"
                )
            yield batch
        if self._complete and len(digests) < len(self._digests):
            raise FingerprintMismatchError(
                f"{self._name}: ended after {len(digests)} batches, the first pass had {len(self._digests)}"
            )
        self._digests, self._complete = digests, True
