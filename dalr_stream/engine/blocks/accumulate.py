"""Network and data to moments block by block: one block in memory, the stream between blocks in the store.

    for each block      its weights are read
        for each batch  the stream's record of it is read, the block runs, the next record is written, rows are folded
                        its moments are kept, its weights given up, the records before it removed

The rows, their order and the rule of folding are those of one pass through the whole network, and so are the records in
the store, to the bit. Killed at any instant it resumes in that block: a batch's record is on disk before its rows are
folded, and rows that no checkpoint has are made again from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.blocks.block_rows import BlockRows
from dalr_stream.engine.blocks.groups import BlockOrder
from dalr_stream.engine.fold_passes import fold_into
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.engine.statistics import Statistics, stored_weights
from dalr_stream.errors import DiskSpaceError, InvalidInputError
from dalr_stream.network.blocks.passes import BlockPasses, Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.proof import Generations, prove_blocks
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.hooks import require_batches, require_eval, require_layers
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.proofs.probe import probe_of
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.layout import UNFINISHED
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding


def from_blocks(  # noqa: PLR0913  # those of accumulate
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    store: str | Place | None,
    *,
    domain: str,
    blocks: Blocks,
    rows: RowRule | None,
    folding: Folding | None,
    progress: Progress | None,
    ranks: Ranks | None,
) -> Statistics:
    """Do what `accumulate` does, block by block."""
    folding, progress = folding or Folding(), progress or Silent()
    root = disk_of(store, ranks)
    feed = block_rows(model, batches, layers, root, domain=domain, blocks=blocks, rows=rows, progress=progress)
    with uncached(model):
        network = feed.network()
        record = fold_into(root, domain, feed, network, folding, progress)
    homes = {stream: record.home(stream) for stream in feed.streams}
    moments = LayerMoments.stored(root, domain, homes, folding.shards)
    return Statistics(network.layers, moments, partial(stored_weights, root, network.layers))


def block_rows(  # noqa: PLR0913  # those of accumulate
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    root: Path,
    *,
    domain: str,
    blocks: Blocks,
    rows: RowRule | None,
    progress: Progress,
    keeps_moments: bool = True,
) -> BlockRows:
    """Prove that a network goes block by block, and return what makes its rows so; it is run `uncached`."""
    require_layers(layers)
    require_batches(batches)
    require_eval(model)
    first, pieces = SameEveryPass(batches).first(), Pieces.of(model)
    rule = (rows or RowRule()).of_layers(layers)
    probe = probe_of(model, first, samples_in(first)) if rule.prove else None  # its cache is part of what it gives
    with uncached(model):
        passes = BlockPasses.of(model, first, pieces, blocks)
        kept = prove_blocks(model, first, passes, pieces)
        progress.note(
            f"blocks: {len(passes)} passes, '{passes.blocks[0][0]}' to '{passes.blocks[-1][-1]}'; block by block the "
            "first batch gives the network's own outputs, to the bit"
        )
    feed = BlockRows(
        model, batches, layers, rule,
        root=root, domain=domain, passes=passes, pieces=pieces, probe=probe, keeps_moments=keeps_moments,
    )  # fmt: skip
    _require_disk(root, stream_bytes(kept, feed.order, rule, batches), gradients=feed.order.turn is not None)
    return feed


def disk_of(store: str | Place | None, ranks: Ranks | None) -> Path:
    """Return the folder of a store that can hold the stream between blocks; raises InvalidInputError."""
    if store is None:
        raise InvalidInputError("accumulate: block by block, the stream between blocks lies in a store: give store=...")
    if ranks is not None and ranks.ranks > 1:
        raise InvalidInputError("accumulate: block by block, one process runs the network: give no ranks")
    root = place_of(store)
    if isinstance(root, BucketPath):
        raise InvalidInputError(
            f"accumulate: block by block, the stream between blocks lies on a disk, and '{root}' does not: give a "
            "folder as store, and merge that into a store in the bucket"
        )
    return root


def stream_bytes(kept: Generations, order: BlockOrder, rule: RowRule, batches: Iterable[Any]) -> int:
    """Return what lies between blocks at most, as far as the length of the loader tells."""
    samples = kept.samples * (length_of(batches) or 1)
    if order.turn is None or rule.gradients is None:
        return kept.sample_bytes * samples
    return kept.sample_bytes_back(order.turn, rule.gradients.draws) * samples


def _require_disk(root: Path, needed: int, *, gradients: bool) -> None:
    """Raise DiskSpaceError where the stream does not fit."""
    existing = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    held = sum(path.stat().st_size for path in (root / UNFINISHED).rglob("*") if path.is_file())
    if needed - held > free:
        kept = ", which with gradients is kept of every block until the way back" if gradients else ""
        less = "watch gradients of later blocks alone or of none, " if gradients else ""
        raise DiskSpaceError(
            f"'{root}': the stream between blocks{kept} takes {needed / 2**30:,.1f} GiB of disk, "
            f"{held / 2**30:,.1f} are there, and {free / 2**30:,.1f} GiB are free: free some, choose another store, "
            f"{less}or take fewer samples"
        )
