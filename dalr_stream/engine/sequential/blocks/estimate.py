"""What compressing layer after layer, block by block, will hold, from one batch and arithmetic; any weights will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dalr_stream.engine.sequential.blocks.known_batches import KnownBatches
from dalr_stream.engine.sequential.blocks.preparation import Preparation, PreparedBlock
from dalr_stream.engine.sequential.pass_plan import SequencePlan
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.network.blocks.passes import BlockPasses, Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.proof import generations_of
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.numerics.methods import Method
from dalr_stream.streaming.folding import Folding

NETWORKS = 2
"""Of which what a block gives is on disk; and as which a block is in memory: its own, and what is new of it."""


@dataclass(frozen=True, slots=True)
class BlockSequenceCost:
    """A sweep over the blocks."""

    plans: tuple[SequencePlan, ...]
    """Of each block, its own weights counted twice: as it is, and compressed."""
    stream_bytes: int
    """Disk, at most, for what the blocks of both networks give."""
    weights_bytes: int
    """Disk, at most, for the compressed blocks."""
    kept_bytes: tuple[int, ...]
    """What would be kept between the passes of each block, were there room for all of it."""

    @classmethod
    def of(cls, blocks: Iterable[PreparedBlock], sample_bytes: int, samples: int) -> BlockSequenceCost:
        """Put together what is known of the blocks."""
        found = list(blocks)
        weights = sum(block.weights_bytes for block in found)
        kept = tuple(samples * block.kept_sample_bytes for block in found)
        return cls(tuple(block.plan for block in found), NETWORKS * sample_bytes * samples, weights, kept)

    @property
    def peak_bytes(self) -> int:
        """The most that is held at once."""
        return max(plan.peak_bytes(kept) for plan, kept in zip(self.plans, self.kept_bytes, strict=True))

    @property
    def moments_bytes(self) -> int:
        """Disk for the moments of the block that has most."""
        return max(plan.moments_bytes for plan in self.plans)

    @property
    def disk_bytes(self) -> int:
        """The most that is on disk at once."""
        return self.stream_bytes + self.moments_bytes + self.weights_bytes

    def require(self) -> None:
        """Raise MemoryLimitError where a pass does not fit."""
        for plan in self.plans:
            plan.require()

    @property
    def in_words(self) -> str:
        """What a block holds, and what is on disk."""
        passes = sum(len(plan.passes) for plan in self.plans)
        peak = max(plan.pass_bytes for plan in self.plans)
        block = max(plan.networks_bytes for plan in self.plans)
        return (
            f"layer after layer, block by block: {passes} passes at most in {len(self.plans)} blocks; a pass peaks at "
            f"{_mib(peak)}, a block and its compressed copy take {_mib(block)}; of disk, {_mib(self.stream_bytes)} for "
            f"what blocks of both networks give, {_mib(self.moments_bytes)} for a block's moments and "
            f"{_mib(self.weights_bytes)} for compressed blocks, at most"
        )


def estimate_by_blocks(  # noqa: PLR0913  # those of compress_sequentially
    model: nn.Module,
    batches: Iterable[Any],
    methods: Mapping[str, Method],
    folding: Folding,
    *,
    blocks: Blocks,
    target: Target,
    source: Iterable[Any] | None = None,
    rows: RowRule | None = None,
) -> BlockSequenceCost:
    """Return what `compress_sequentially(..., blocks=...)` will hold, by the method of each layer.

    Raises as it does before its first pass. Cost: two forward passes of the first batch, and a few of two samples.
    """
    seen, pieces = SameEveryPass(batches), Pieces.of(model)
    with uncached(model):
        passes = BlockPasses.of(model, seen.first(), pieces, blocks)
        kept = generations_of(model, seen.first(), passes)
        known = KnownBatches.glimpsed(seen)
        rule = rule_of(rows).of_layers(())
        prepared = Preparation(model, passes, pieces, known, methods, target, folding, rule).blocks()
    lengths = [length_of(one) or 1 for one in (batches, source) if one is not None]
    samples = kept.samples * (sum(lengths) + len(known.examples))
    return BlockSequenceCost.of(prepared.values(), kept.sample_bytes, samples)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
