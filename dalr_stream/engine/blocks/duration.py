"""How long accumulating block by block takes, from one block that is timed: to read, to run, and to fold its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.planning.duration import Duration, seconds_a_row
from dalr_stream.network.blocks.alone import Alone, AlonePieces
from dalr_stream.network.blocks.passes import BlockPasses, Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.batches import call, few_samples, inputs_copied, samples_in, tensors_in
from dalr_stream.network.capture.gradients.edges import edges_of
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.capture.taking import RowTaker
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.torch_library import wait_for_devices
from dalr_stream.numerics.rows.streams import Side, module_name
from dalr_stream.progress import seconds_in_words
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan

_SAMPLES = 8
"""That a block is timed on at most; a batch of more takes as many times longer."""


@dataclass(frozen=True, slots=True)
class BlockDuration:
    """What one block takes on a machine like this one, in seconds; the others are taken to be like it."""

    block: str
    blocks: int
    reading_seconds: float
    """Its weights, from a disk or from what the system has kept of it."""
    running_seconds: float
    """All batches of all domains through it."""
    folding_seconds: float
    """Rows to moments."""
    layers: Mapping[str, float]
    """The same of every layer of the network, by stream."""

    @property
    def duration(self) -> Duration:
        """Of all blocks, as plans have it."""
        passes = self.blocks * (self.reading_seconds + self.running_seconds)
        return Duration(passes, self.layers, (f"passes: reading and running '{self.block}', timed here",))

    @property
    def seconds(self) -> float:
        """Of one block."""
        return self.reading_seconds + self.running_seconds + self.folding_seconds

    def __str__(self) -> str:
        parts = map(seconds_in_words, (self.reading_seconds, self.running_seconds, self.folding_seconds))
        read, run, fold = parts
        whole, one = map(seconds_in_words, (self.blocks * self.seconds, self.seconds))
        return (
            f"accumulate: about {whole} on a machine like this one, {one} for each of {self.blocks} blocks ({read} "
            f"reading it, {run} running it, {fold} in sums; without the stream's disk), as '{self.block}' was timed"
        )


def duration_of_blocks(
    model: nn.Module,
    loaders: Mapping[str, Iterable[Any]],
    layers: Sequence[LayerSpec],
    folding: Folding,
    plan: MemoryPlan,
    *,
    blocks: Blocks,
    rows: RowRule | None = None,
) -> BlockDuration:
    """Time the first block that has layers to record, on some samples of each loader's first batch."""
    pieces, rule = Pieces.of(model), rule_of(rows).of_layers(layers)
    seconds, reading, block, within = 0.0, 0.0, "", list[LayerSpec]()
    for batches in loaders.values():
        first = SameEveryPass(batches).first()
        few = few_samples(first, _SAMPLES)
        if not block:
            block, within = _first_block(model, few, pieces, blocks, layers)
        alone = AlonePieces.of(model, few, pieces, [block], whole=True)
        begun = time.perf_counter()
        with alone.piece(block) as one:
            reading = time.perf_counter() - begun
            share = samples_in(first) / samples_in(few)
            seconds += share * (length_of(batches) or 1) * _seconds_of_batch(one, few, within, rule, folding)
    each = {width: seconds_a_row(width, folding) for width in {layer.features for layer in plan.layers}}
    folds = {layer.name: layer.rows * each[layer.features] for layer in plan.layers}
    of_block = sum(folds.get(layer.stream, 0.0) for layer in within)
    return BlockDuration(block, plan.blocks, reading, seconds, of_block, folds)


def _first_block(
    model: nn.Module, batch: Any, pieces: Pieces, blocks: Blocks, layers: Sequence[LayerSpec]
) -> tuple[str, list[LayerSpec]]:
    """Return the first module of a block with layers to record, and these."""
    with uncached(model):
        passes = BlockPasses.of(model, batch, pieces, blocks)
    holding = {
        piece: [one for one in layers if pieces.holding(module_name(one.name)) == piece] for piece in pieces.names
    }
    members = [name for block in passes.blocks for name in block]
    block = next((name for name in members if holding.get(name)), next(piece for piece in holding if holding[piece]))
    return block, holding[block]


def _seconds_of_batch(one: Alone, batch: Any, layers: Sequence[LayerSpec], rule: RowRule, folding: Folding) -> float:
    """Return what a batch takes in a block: forward and, with gradients, once more and back for each draw."""
    followed = [layer for layer in layers if layer.side is Side.GRADIENTS]
    read = [layer for layer in layers if layer.side is not Side.GRADIENTS]
    taker, to_rows = RowTaker(one.network, read, rule.of_layers(read)), rows_for(folding)
    samples = samples_in(batch)
    masks = rule.masks_of(batch, samples)

    def forward() -> None:
        taken = taker.take(one.example, samples, 0, masks) if read else {}
        if not read:
            call(one.network, one.example)
        for of_layer in {id(of_layer): of_layer for of_layer in taken.values()}.values():
            to_rows(of_layer.rows)

    with without_gradients():
        seconds = _second_time(forward)
        if rule.gradients is not None:
            draws = rule.gradients.draws
            seconds += _second_time(lambda: _there_and_back(one, followed, samples, draws))
    return seconds


def _second_time(work: Callable[[], None]) -> float:
    """Return what some work takes when it is done again: the first time warms up."""
    seconds = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        work()
        wait_for_devices()
        seconds = time.perf_counter() - begun
    return seconds


def _there_and_back(one: Alone, layers: Sequence[LayerSpec], samples: int, draws: int) -> None:
    """Run a block that gradients go back through, from all that it gives."""
    with edges_of(one.network, layers, (), samples) as edges:
        returned = call(one.network, inputs_copied(one.example))
        given = [edge.edge for calls in edges.values() for edge in calls]
        left = [tensor for tensor in tensors_in(returned) if tensor.requires_grad]
        for draw in range(draws if given else 0):
            ones = [torch.ones_like(tensor) for tensor in left]
            torch.autograd.grad(left, given, ones, retain_graph=draw + 1 < draws, allow_unused=True)
