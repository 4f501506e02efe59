"""What is found out of every block before the first pass, on a few samples that go through the blocks one by one.

Which layers are solved when, towards what, within which memory; and whatever can be known to fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from dalr_stream.engine.cross.cost import PairMemory
from dalr_stream.engine.sequential.blocks.known_batches import KnownBatches
from dalr_stream.engine.sequential.onward_passes import kept_of_sample, touched_by
from dalr_stream.engine.sequential.pass_plan import SequencePlan
from dalr_stream.engine.sequential.preparation import (
    passes_of,
    planned,
    require_attentions,
    require_prunable,
    targets_of,
)
from dalr_stream.engine.sequential.targets import StreamTargets, Target, require_a_stream
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.blocks.block_network import BlockNetwork, Given, LeftInMemory
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.capture.batches import digest_of_inputs
from dalr_stream.network.capture.passes import order_of_execution
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.given import UsedError
from dalr_stream.network.capture.resuming.stored_states import not_called, not_used_before
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.obstacles import require_replaceable
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.measure.memory import weights_bytes
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.methods import Method
from dalr_stream.streaming.folding import Folding


@dataclass(frozen=True, slots=True)
class PreparedBlock:
    """What is to be done in one block."""

    number: int
    methods: Mapping[str, Method]
    """By which its layers are compressed."""
    passes: tuple[tuple[str, ...], ...]
    targets: StreamTargets
    selected: tuple[str, ...]
    attentions: Mapping[str, HeadLayout]
    """Those whose heads get narrower, by output layer."""
    plan: SequencePlan
    batch: PairMemory | None
    read: tuple[LayerSpec, ...]
    """What is watched in the original."""
    weights_bytes: int
    kept_sample_bytes: int
    """What would be kept of a sample between two passes, were there room."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a block is looked at with."""

    model: nn.Module
    passes: BlockPasses
    pieces: Pieces
    known: KnownBatches
    methods: Mapping[str, Method]
    target: Target
    folding: Folding
    rule: RowRule

    def blocks(self) -> dict[int, PreparedBlock]:
        """Return every block in which there is something to do, by number; cost: a few samples through each of them.

        Raises UnsupportedLayerError, MemoryLimitError and RankError.
        """
        require_replaceable(self.model, self.methods)
        names: dict[int, list[str]] = {}
        for name in self.methods:
            names.setdefault(self.passes.pass_of(name), []).append(name)
        left = LeftInMemory({})
        found: dict[int, PreparedBlock] = {}
        for number in range(max(names) + 1):
            with self.pieces.present(self.passes.pieces[number]), without_gradients():
                alone = BlockNetwork(self.model, self.passes, number, left)
                if number in names:
                    found[number] = self._block(alone, number, names[number])
                left = LeftInMemory(dict(self._onward(alone)))
        if self.target is Target.STREAM:
            require_a_stream(one.targets for one in found.values())
        return found

    def _block(self, alone: BlockNetwork, number: int, names: Sequence[str]) -> PreparedBlock:
        first = self.known.first
        methods = {name: self.methods[name] for name in self.methods if name in names}
        with _within_the_block("whoever gives, carries or reads its nodes"):
            groups = require_prunable(alone, methods, self.known.batches)
        with _within_the_block("all layers of an attention"):
            heads = require_attentions(alone, methods, self.known.batches)
        targets = targets_of(alone, first, methods, groups, self.target)
        passes = passes_of(order_of_execution(alone, first, names), methods)
        plan, batch = planned(alone, passes, methods, targets, self.folding, self.rule, first, attentions=heads)
        read, _ = touched_by(alone, first, passes, list(groups), targets.layers, heads)
        kept = kept_of_sample(alone, first, passes, groups, heads)
        return PreparedBlock(
            number, methods, passes, targets, tuple(groups), heads, plan, batch, tuple(read), weights_bytes(alone), kept
        )

    def _onward(self, alone: BlockNetwork) -> Iterator[tuple[str, Given]]:
        """Yield what is left of each example after a block."""
        for inputs in (self.known.first, *self.known.examples):
            try:
                given = alone.onward(inputs)
            except UsedError:
                raise not_used_before() from None
            if given is None:
                raise not_called()
            yield digest_of_inputs(inputs), given


@contextmanager
def _within_the_block(who: str) -> Iterator[None]:
    """Say of a selection, or of heads, that reach beyond their block why they are refused."""
    try:
        yield
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(
            f"{error}; block by block, {who} must be in one block: leave it out, or compress the network whole"
        ) from error
