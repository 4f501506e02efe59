"""`compress_sequentially` block by block: what it checks, the sweep, and the network that comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from dalr_stream.engine.sequential.blocks.block_record import BlockRecord, plan_of
from dalr_stream.engine.sequential.blocks.estimate import BlockSequenceCost
from dalr_stream.engine.sequential.blocks.known_batches import KnownBatches
from dalr_stream.engine.sequential.blocks.preparation import Preparation, PreparedBlock
from dalr_stream.engine.sequential.blocks.sweep import Sweep
from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.passes import SequentialCompression
from dalr_stream.engine.sequential.preparation import require_heads, require_sound
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.errors import DiskSpaceError, InvalidInputError
from dalr_stream.network.blocks.passes import BlockPasses, Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.proof import prove_blocks
from dalr_stream.network.blocks.reassembled import reassembled
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.blocks.walk import BlockWalk
from dalr_stream.network.capture.batches import require_mask_passed_on
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.proofs.proved import prove
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.numerics.options import parse_choice
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.layout import UNFINISHED
from dalr_stream.storage.lock import work_folder
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding, unrounded

FOLDER = "blocks"
"""Within the store."""


def compress_by_blocks(  # noqa: PLR0913  # those of compress_sequentially
    model: nn.Module,
    batches: Iterable[Any],
    choices: Mapping[str, LayerChoice],
    *,
    blocks: Blocks,
    target: Target | str = Target.OUTPUTS,
    source: Iterable[Any] | None = None,
    store: str | Place | None = None,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> SequentialCompression:
    """Do what `compress_sequentially` does, one block in memory at a time."""
    root = _folder(store)
    folding, progress = folding or Folding(), progress or Silent()
    rule, towards = rule_of(rows).of_layers(()), parse_choice(Target, target, "target")
    require_sound(model, choices, folding, has_source=source is not None)
    pieces, seen = Pieces.of(model), SameEveryPass(batches)
    beside = None if source is None else SameEveryPass(source, "source")
    require_mask_passed_on(model, seen.first())
    with uncached(model):
        passes = BlockPasses.of(model, seen.first(), pieces, blocks)
        kept = prove_blocks(model, seen.first(), passes, pieces)
        few = KnownBatches.glimpsed(seen)
        methods = {name: choice.by for name, choice in choices.items()}
        prepared = Preparation(model, passes, pieces, few, methods, towards, folding, rule).blocks()
        require_heads(choices, {name: heads for one in prepared.values() for name, heads in one.attentions.items()})
        known, walk = KnownBatches.of(seen, rule, beside), BlockWalk(model, passes, pieces)
        read = [spec for block in prepared.values() for spec in block.read]
        orders, orders_of_source = (
            None if one is None else prove(model, one, read, rule, walk) for one in (seen, beside)
        )
        cost = BlockSequenceCost.of(prepared.values(), kept.sample_bytes, kept.samples * len(known.keys))
        _require_room(root, cost, progress)
        made_from = {
            "network": fingerprint(model), "blocks": [list(one) for one in passes.blocks], "batches": known.identity,
        }  # fmt: skip
        solved_by = digest_of([towards.value, rule.words, unrounded(folding.facts)])
        with work_folder(root, "block-*", f"{UNFINISHED}/*", f"{UNFINISHED}/*/@*"):
            sweep = Sweep(
                model, root, passes, pieces, known, choices, prepared, made_from, solved_by, orders, orders_of_source,
                folding, rule, progress,
            )  # fmt: skip
            sweep.run()
            compressed = [BlockRecord(root, number).tensors for number in sorted(prepared)]
            small = reassembled(model, [(plan_of(block), block) for block in compressed])
    return SequentialCompression(small, _passes(prepared), sweep.outcomes)


def _passes(prepared: Mapping[int, PreparedBlock]) -> tuple[tuple[str, ...], ...]:
    return tuple(group for number in sorted(prepared) for group in prepared[number].passes)


def _folder(store: str | Place | None) -> Place:
    if store is None:
        raise InvalidInputError(
            "compress_sequentially: block by block, what the blocks give lies in a store: give store=..."
        )
    return place_of(store) / FOLDER


def _require_room(root: Place, cost: BlockSequenceCost, progress: Progress) -> None:
    """Raise DiskSpaceError where two streams, the largest block's moments and the compressed blocks do not fit."""
    if isinstance(root, BucketPath):
        most, kept = (size / 2**30 for size in (cost.disk_bytes, cost.weights_bytes))
        progress.note(
            f"blocks: compressing them takes up to {most:,.1f} GiB of '{root}' meanwhile; up to {kept:,.1f} stay, of "
            "compressed blocks"
        )
        return
    existing = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    if cost.disk_bytes - held > free:
        sizes = (cost.disk_bytes, cost.stream_bytes, cost.moments_bytes, cost.weights_bytes, held, free)
        whole, given, sums, small, there, left = (f"{size / 2**30:,.1f}" for size in sizes)
        raise DiskSpaceError(
            f"'{root}': compressing block by block takes {whole} GiB of disk ({given} for what the blocks of two "
            f"networks give, {sums} for a block's moments, {small} for compressed blocks at most), {there} are there, "
            f"and {left} GiB are free: free some, choose another store, or take fewer samples"
        )
