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
from dalr_stream.engine.ranks.passes import require_same_on_all
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
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.capture.wrapped import require_for_ranks
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.layout import UNFINISHED
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.ranks.link import Alone, Link


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
    root, link = store_of(store), ranks or Alone()
    said = Silent() if link.rank else progress
    feed = block_rows(model, batches, layers, root, domain=domain, blocks=blocks, rows=rows, progress=said, link=link)
    with uncached(model):
        network = feed.network()
        record = fold_into(root, domain, feed, network, folding, progress, link)
    if link.rank:
        return Statistics(network.layers, LayerMoments({}), partial(stored_weights, root, network.layers))
    homes = {stream: record.home(stream) for stream in feed.streams}
    moments = LayerMoments.stored(root, domain, homes, folding.shards)
    return Statistics(network.layers, moments, partial(stored_weights, root, network.layers))


def block_rows(  # noqa: PLR0913  # those of accumulate
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    root: Place,
    *,
    domain: str,
    blocks: Blocks,
    rows: RowRule | None,
    progress: Progress,
    keeps_moments: bool = True,
    link: Link | None = None,
) -> BlockRows:
    """Prove that a network goes block by block, and return what makes its rows so; it is run `uncached`."""
    require_layers(layers)
    require_batches(batches)
    require_eval(model)
    link = link or Alone()
    if link.ranks > 1:
        require_for_ranks(model, batches, link.ranks)
    first, pieces = SameEveryPass(batches).first(), Pieces.of(model)
    rule = rule_of(rows).of_layers(layers)
    probe = probe_of(model, first, samples_in(first)) if rule.prove else None  # its cache is part of what it gives
    with uncached(model):
        passes = BlockPasses.of(model, first, pieces, blocks)
        kept = prove_blocks(model, first, passes, pieces)
        progress.note(
            f"blocks: {len(passes)} passes, '{passes.blocks[0][0]}' to '{passes.blocks[-1][-1]}'; block by block the "
            "first batch gives the network's own outputs, to the bit"
        )
    require_same_on_all(link, {"list of blocks": [list(block) for block in passes.blocks]})
    feed = BlockRows(
        model, batches, layers, rule,
        root=root, domain=domain, passes=passes, pieces=pieces, probe=probe, keeps_moments=keeps_moments, link=link,
    )  # fmt: skip
    needed = stream_bytes(kept, feed.order, rule, batches)
    if isinstance(root, BucketPath):
        progress.note(f"blocks: what they give each other takes up to {needed / 2**30:,.1f} GiB of '{root}' meanwhile")
    elif link.rank == 0:
        _require_disk(root, needed, gradients=feed.order.turn is not None)
    return feed


def store_of(store: str | Place | None) -> Place:
    """Return the place of a store that holds the stream between blocks; raises InvalidInputError for none."""
    if store is None:
        raise InvalidInputError("accumulate: block by block, the stream between blocks lies in a store: give store=...")
    return place_of(store)


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
