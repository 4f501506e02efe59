"""The proof that gradients are the same block by block as in one graph, bit for bit, on a few samples.

    forward     each block with gradients followed: through which of what it gives they go back is seen
    backward    each block from the gradients that the next one left, and both in one graph from those that the one
                after them left: the gradients by what their layers give, and by what the first began with, are the same

One graph of the whole network would hold all of its weights. Two neighbours show how gradients add up at the place
between them; what is added before does not depend on whether there is a place. Cost: weights are read three times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.capture.batches import few_samples, samples_in
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.block_passes import given_of
from dalr_stream.network.capture.gradients.crossing import (
    BlockRun,
    Crossing,
    Entering,
    Followed,
    Gradients,
    Place,
    needing_the_last_block_alone,
)
from dalr_stream.network.capture.gradients.edges import edges_of
from dalr_stream.network.capture.gradients.ends import End
from dalr_stream.network.capture.gradients.taking import GradientTaker, backward
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.calls import Call, is_in
from dalr_stream.network.capture.resuming.given import tensors_in
from dalr_stream.network.capture.resuming.onward import SAMPLES, ForwardRun
from dalr_stream.network.capture.resuming.stored_states import StoredStream
from dalr_stream.network.capture.row_rule import BatchRows, RowRule
from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.network.layers.spec import LayerSpec

Given = Mapping[Call, Any]


@dataclass(frozen=True, slots=True)
class BackwardPlaces:
    """What is known, at each place between two passes, of the gradients that cross it."""

    places: tuple[Place, ...]

    def before(self, number: int) -> Place | None:
        """Return the place where a pass begins; None at the inputs."""
        return self.places[number - 1] if number else None

    def after(self, number: int) -> Place | None:
        """Return the place where a pass ends; None at the end of the network."""
        return self.places[number] if number < len(self.places) else None


class BackwardProof:
    """Proves it on the first samples of a batch."""

    def __init__(  # the network, its data, its blocks, and what is watched
        self,
        model: nn.Module,
        batch: Any,
        passes: BlockPasses,
        pieces: Pieces,
        layers: Sequence[Sequence[LayerSpec]],
        rows: RowRule,
        orders: Orders | None,
    ) -> None:
        """`layers` has, of each pass, those that are watched for gradients; `orders` what is proved of their rows."""
        self._model, self._passes, self._pieces, self._layers = model, passes, pieces, layers
        self._batch = few_samples(batch, SAMPLES)
        samples = samples_in(self._batch)
        self._chooser = BatchRows(rows, samples, 0, rows.masks_of(self._batch, samples), orders=orders)
        self._prove, self._orders = rows.prove, orders
        self._rule = dataclasses.replace(rows.gradients or GradientRule(), draws=1)
        self._unreached = False
        """Whether a layer got no row of any sample yet."""

    def places(self, streams: Sequence[StoredStream]) -> BackwardPlaces:
        """Return what is known of the places; `streams` is where samples are between passes, for each pass.

        Raises UnsupportedLayerError where gradients are not the same, InvalidInputError where they are not each
        sample's own.
        """
        if self._prove:
            watched = [layer for layers in self._layers for layer in layers]
            GradientTaker(self._model, watched, self._rule).prove(self._batch, self._chooser.samples, self._orders)
        with without_gradients(), needing_the_last_block_alone():
            found = self._forward(streams)
            self._backward(found, streams)
        return found

    def _forward(self, streams: Sequence[StoredStream]) -> BackwardPlaces:
        """Take the samples through all blocks, and see through which tensors gradients would go back."""
        places: list[Place] = []
        for number, (stream, done) in enumerate(zip(streams, self._passes.done, strict=False)):
            given, before, after = given_of(stream, 0), places[-1] if places else None, Place(done, {})
            entering, crossing = Entering(given, before), Crossing(given, before, after, proving=True)
            run = ForwardRun(given, done, until_kept=True, handing=entering)
            with self._pieces.present(self._passes.pieces[number]):
                with self._edges([number]):
                    run(self._model, self._batch)
                with self._edges([number]) as edges:
                    BlockRun(crossing)(self._model, self._batch)
            self._unreached |= not all(edges.values())
            stream.keep(0, run.kept)
            places.append(Place(done, self._followed(number, crossing, run.kept)))
        return BackwardPlaces(tuple(places))

    def _followed(self, number: int, crossing: Crossing, kept: Mapping[Call, Any]) -> Followed:
        found: dict[Call, tuple[bool, ...]] = {}
        for way, left in crossing.left().items():
            if [one.digest for one in left] != _digests(list(tensors_in((kept[way],)))):
                raise self._differs(number, f"what '{way[-1][0]}' gives")
            whatever = self._unreached and is_in(way[-1][0], self._passes.blocks[number])
            flags = tuple(one.edge is not None or (whatever and one.tensor.is_floating_point()) for one in left)
            if any(flags):
                found[way] = flags
        return found

    def _backward(self, places: BackwardPlaces, streams: Sequence[StoredStream]) -> None:
        lowest = next(number for number, layers in enumerate(self._layers) if layers)
        later: Gradients = {}
        after: _Found | None = None
        for number in range(len(self._passes) - 1, lowest - 1, -1):
            both = [number, number + 1]
            needed = [piece for one in both[: 1 if after is None else 2] for piece in self._passes.pieces[one]]
            given = given_of(streams[number], 0)
            with self._pieces.present(list(dict.fromkeys(needed))):
                found = self._back(places, [number], given, {} if after is None else after.carried)
                if after is not None:
                    self._compare(self._back(places, both, given, later), found, after, number)
            later, after = {} if after is None else after.carried, found

    def _back(self, places: BackwardPlaces, numbers: Sequence[int], given: Given, gradients: Gradients) -> _Found:
        """Go through some neighbours and back in one graph, from the gradients by what the last of them gave."""
        before, after = places.before(numbers[0]), places.after(numbers[-1])
        run = BlockRun(Crossing(given, before, after, gradients, proving=True))
        with self._edges(numbers) as edges:
            returned = run(self._model, self._batch)
            end = End(returned, self._batch, self._chooser.samples)
            by_layer = next(backward(edges, end, self._chooser, self._rule, run.crossing))
        calls = {stream: [gradient.tensor for gradient in gradients] for stream, gradients in by_layer.items()}
        left = {way: [one.digest for one in tensors] for way, tensors in run.crossing.left().items()}
        return _Found(calls, run.crossing.carried(), left)

    def _edges(self, numbers: Sequence[int]) -> Any:
        layers = [layer for number in numbers for layer in self._layers[number]]
        routed = [layer.stream for layer in layers if self._chooser.is_routed(layer.stream)]
        return edges_of(self._model, layers, routed, self._chooser.samples)

    def _compare(self, together: _Found, one: _Found, other: _Found, number: int) -> None:
        if together.left != other.left:
            raise self._differs(number, "what the block after it gives")
        apart = {**one.by_layer, **other.by_layer}
        for stream, gradients in together.by_layer.items():
            if _digests(gradients) != _digests(apart[stream]):
                raise self._differs(number, f"the gradient by what layer '{stream}' gives")
        for way, by_draw in together.carried.items():
            if [_digests(tensors) for tensors in by_draw] != [_digests(tensors) for tensors in one.carried[way]]:
                raise self._differs(number, f"the gradient by what '{way[-1][0]}' gives")

    def _differs(self, number: int, what: str) -> UnsupportedLayerError:
        return UnsupportedLayerError(
            f"gradients: {what} is not the same by block '{self._passes.blocks[number][0]}' alone as in one graph with "
            "the block after it: something is random there, or it is added in another order; watch no gradients, or "
            "run the network whole"
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """The gradients by what layers gave, call after call, and by what a pass began with."""

    by_layer: Mapping[str, Sequence[torch.Tensor]]
    carried: Gradients
    left: Mapping[Call, Sequence[str]]
    """Digests of what it gave."""


def _digests(tensors: Sequence[torch.Tensor | None]) -> list[str]:
    return ["" if tensor is None else tensor_digest(tensor) for tensor in tensors]
