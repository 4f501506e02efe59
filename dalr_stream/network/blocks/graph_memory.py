"""What one batch holds in memory on its way through a block and back, as torch's own tensors show it.

Looked at are the first block that is watched for gradients, which others are taken to be like, and the last one, with
the head and the loss. Cost: a forward pass of the batch, and these two blocks once more, and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.crossing import BlockRun, Crossing, Place
from dalr_stream.network.capture.gradients.edges import edges_of
from dalr_stream.network.capture.gradients.ends import End
from dalr_stream.network.capture.gradients.taking import backward
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.calls import Call, is_in
from dalr_stream.network.capture.resuming.given import tensors_in
from dalr_stream.network.capture.resuming.onward import ForwardRun
from dalr_stream.network.capture.row_rule import BatchRows, RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.measure.memory import memory_of

Given = Mapping[Call, Any]


def graph_bytes(
    model: nn.Module,
    batch: Any,
    passes: BlockPasses,
    pieces: Pieces,
    layers: Sequence[Sequence[LayerSpec]],
    rule: GradientRule,
) -> int:
    """Return what a batch holds at most beside one block; `layers` has those of each pass, watched for gradients."""
    turn, most = next(number for number, within in enumerate(layers) if within), 0
    for number, given in _states(model, batch, passes, (turn, len(passes) - 1)):
        before = None if number == turn else _place(passes, number - 1, given, turn)
        after = Place(passes.done[number], {}) if number < len(passes.done) else None
        run = BlockRun(Crossing(given, before, after))
        with pieces.present(passes.pieces[number]):
            held = memory_of(model, batch, partial(_there_and_back, model, batch, run, layers[number], rule))
        begun = sum(tensor.nbytes for tensor in tensors_in(tuple(given.values())))  # each draw has gradients by it
        most = max(most, held.peak_bytes + rule.draws * begun)
    return most


def _states(model: nn.Module, batch: Any, passes: BlockPasses, numbers: Sequence[int]) -> Iterator[tuple[int, Given]]:
    """Yield some passes, in order, with what they begin with."""
    given: Given = {}
    for number in dict.fromkeys(numbers):
        if number:
            run = ForwardRun(given, passes.done[number - 1], until_kept=True)
            with without_gradients():
                run(model, batch)
            given = run.kept
        yield number, given


def _place(passes: BlockPasses, number: int, given: Given, turn: int) -> Place:
    """Return a place as if gradients crossed it through all that blocks from `turn` on gave."""
    blocks = [name for block in passes.blocks[turn:] for name in block]
    crossed = {way: list(tensors_in((value,))) for way, value in given.items() if is_in(way[-1][0], blocks)}
    followed = {way: [tensor.is_floating_point() for tensor in tensors] for way, tensors in crossed.items()}
    return Place(passes.done[number], followed)


def _there_and_back(
    model: nn.Module, batch: Any, run: BlockRun, layers: Sequence[LayerSpec], rule: GradientRule
) -> None:
    """Run a block and go back once: from the loss, or from all that the block gives where others follow."""
    samples, crossing = samples_in(batch), run.crossing
    with edges_of(model, layers, (), samples) as edges:
        returned = run(model, batch)
        if crossing.after is None:
            chooser = BatchRows(RowRule(), samples, 0, None)
            next(backward(edges, End(returned, batch, samples), chooser, rule, crossing))
            return
        found = [(way[-1][0], one) for way, several in crossing.left().items() for one in several]
        left = [(name, one) for name, one in found if one.edge is not None]
        inputs = [*(given.edge for calls in edges.values() for given in calls), *crossing.edges]
        if left and inputs:
            ones = [torch.ones_like(one.tensor) for _, one in left]
            torch.autograd.grad([one.root(name) for name, one in left], inputs, ones, allow_unused=True)
