"""Moments of one block at a time: a block is run when one of its layers is asked for, and those before give theirs up.

The moments of a network of 70B parameters take 610 GiB. Whoever solves layers block by block, in order, needs those of
one block: what was asked for earlier is solved by then, and what was solved is on disk, as a shard of the compressed
network say. The sweep itself is that of `accumulate`, and resumes as it does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from dalr_stream.engine.blocks.accumulate import block_rows, store_of
from dalr_stream.engine.blocks.block_rows import BlockRows
from dalr_stream.engine.fold_passes import passes_into
from dalr_stream.engine.layer_moments import LayerMoments, OnDemand
from dalr_stream.engine.ranks.passes import common_facts, end_of, require_same_on_all, take_part
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.engine.statistics import Statistics, Weights
from dalr_stream.errors import InvalidInputError, StoreNotFoundError
from dalr_stream.network.blocks.passes import Blocks
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec, weights_of
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.contents import DomainRecord, LayerRecord
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place, remove_folder
from dalr_stream.storage.records.moments import load_moments, moments_count, moments_path, shard_parts
from dalr_stream.storage.records.stored_moments import open_moments
from dalr_stream.storage.removal import forget_moments
from dalr_stream.storage.schema import HELDOUT, TRAINING
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.ranks.link import Alone


@contextmanager
def statistics_by_block(  # noqa: PLR0913  # those of accumulate
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    store: str | Place,
    domain: str = "target",
    blocks: Blocks = True,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Statistics]:
    """Give statistics whose moments are made block by block, when they are asked for, and kept for one block alone.

    Asking for a layer runs the blocks up to its own on every batch, and removes the moments of the blocks before. So
    the disk holds one block's moments in place of all, and no copy of the weights. Within `compress_into`, which asks
    block by block, a network goes from its weights to the compressed one in one sweep.

    Parameters
    ----------
    model, batches, layers, domain, blocks, rows, folding, progress
        As for `accumulate`.
    store
        A folder, or the URL of a store in a bucket, for the moments and the stream between blocks. A call that was
        killed resumes from it; on leaving without an error what it holds of the domain is removed.
    ranks
        From `open_ranks`: the network runs on a share of the batches in each process, and all of them see the store.
        Rank 0 has the layers, and whatever is made of them is its work; the others do their share before the block
        begins, where they have none.

    Yields
    ------
    Statistics
        The layers, to be asked for in their order: block after block, with gradients from the last one to the first.

    Raises
    ------
    InvalidInputError
        Where the store holds moments of the domain that are to be kept; otherwise as `accumulate`.
    StoreNotFoundError
        Where a layer is asked for after those of a later block: its moments are gone.

    See Also
    --------
    accumulate : keeps the moments of all layers.
    compress_into : writes the compressed network as it goes.

    Examples
    --------
    >>> from functools import partial
    >>> from pathlib import Path
    >>> import torch, dalr_stream as ds
    >>> def build():
    ...     return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> ds.network.save_weights(build(), Path("weights.safetensors"))
    >>> model = ds.open_network(build, "weights.safetensors")
    >>> batches, layers = [torch.randn(32, 6)], ds.watch(model, ["0", "2"])
    >>> with ds.statistics_by_block(model, batches, layers, store="sweep.zarr") as statistics:
    ...     pairs = {name: partial(lambda name: ds.dalr(statistics[name]).at_rank(2), name) for name in statistics}
    ...     folder = ds.compress_into(model, pairs, "small", made_from="rank 2")
    >>> ds.load(folder, build)[2][0].out_features
    2
    """
    folding, root, link = folding or Folding(), store_of(store), ranks or Alone()
    progress = Silent() if link.rank else progress or Silent()
    if link.rank == 0:
        _require_nothing_kept(root, domain)
    feed = block_rows(
        model, batches, layers, root, domain=domain, blocks=blocks, rows=rows, progress=progress, keeps_moments=False,
        link=link,
    )  # fmt: skip
    with uncached(model):
        network = feed.network()
        require_same_on_all(link, common_facts(feed, network.fingerprint, folding))
        if link.rank:
            take_part(feed, folding, link)
    if link.rank:
        yield Statistics(network.layers, LayerMoments({}), partial(_weights, feed))
        return
    sweep = _Sweep(feed, folding, passes_into(root, domain, feed, network, folding, progress, link, keep=False))
    try:
        yield Statistics(sweep.in_turn(network.layers), sweep.moments, partial(_weights, feed))
    finally:
        sweep.passes.close()
        sweep.over = True
    end_of(link, progress)
    feed.finish()
    forget_moments(root, domain)


@dataclass
class _Sweep:
    """How far the blocks were run, and which moments are on disk."""

    feed: BlockRows
    folding: Folding
    passes: Generator[DomainRecord, None, DomainRecord]
    record: DomainRecord = dataclasses.field(default_factory=DomainRecord)
    over: bool = False
    """Whether the caller has left it, or an error ended it."""

    @property
    def moments(self) -> LayerMoments:
        """Each record when it is asked for; held-out ones are known to be there once their block was run."""
        names = tuple(self.feed.streams)
        heldout = _Heldout(names, self) if self.folding.holdout.share else ()
        shards = OnDemand(names if self.folding.shards > 1 else (), self._shards)
        return LayerMoments(OnDemand(names, self._training), OnDemand(heldout, self._heldout), shards)

    def path(self, stream: str, part: str) -> Place:
        """Return where a record is, having run the blocks up to that of the stream; raises where it is gone."""
        while stream not in self.record.names and not self.over:
            self._next_block()
        if self.over:
            raise StoreNotFoundError(
                f"layer '{module_name(stream)}': the sweep over the blocks is over, and gives no moments any more: ask "
                "within 'with statistics_by_block(...)', or use accumulate, which keeps all moments"
            )
        for other in self.record.names:
            if self._turn(other) < self._turn(stream):
                remove_folder(self._folder(other))
        path = moments_path(self.feed.root, self.feed.domain, self.record.home(stream), part)
        if not path.exists():
            raise StoreNotFoundError(
                f"layer '{module_name(stream)}': its moments were given up when a layer of {self._order}, or use "
                "accumulate, which keeps all moments"
            )
        return path

    def in_turn(self, layers: Mapping[str, LayerRecord]) -> dict[str, LayerRecord]:
        """Return layers in the order of their blocks' turns."""
        return {stream: layers[stream] for stream in sorted(layers, key=self._turn)}

    def _turn(self, stream: str) -> int:
        number = self.feed.numbers[stream]
        return number if self.feed.order.turn is None else -number

    @property
    def _order(self) -> str:
        if self.feed.order.turn is None:
            return "a later block was asked for: ask for layers in the order of their blocks"
        return (
            "an earlier block was asked for: with gradients ask for layers from the last block to the first "
            "(compress_into with last_first=True does)"
        )

    def _next_block(self) -> None:
        self.over = True  # unless it comes back: an error ends the generator
        with uncached(self.feed.model):
            self.record = next(self.passes)
        self.over = False

    def _training(self, stream: str) -> Moments:
        return open_moments(self.path(stream, TRAINING))

    def _heldout(self, stream: str) -> Moments:
        return open_moments(self.path(stream, HELDOUT))

    def _shards(self, stream: str) -> Sequence[Moments]:
        return [load_moments(self.path(stream, part)) for part in shard_parts(self.folding.shards)]

    def _folder(self, stream: str) -> Place:
        return moments_path(self.feed.root, self.feed.domain, stream, TRAINING).parent


@dataclass(frozen=True)
class _Heldout(Collection[str]):
    """The streams that have held-out rows, each looked at when it is asked for."""

    names: tuple[str, ...]
    sweep: _Sweep

    def __contains__(self, stream: object) -> bool:
        return stream in self.names and bool(moments_count(self.sweep.path(str(stream), HELDOUT)))

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _weights(feed: BlockRows, layer: str) -> Weights:
    with feed.pieces.present([module_name(layer)]):
        return weights_of(feed.model, layer)


def _require_nothing_kept(root: Place, domain: str) -> None:
    """Raise InvalidInputError where an accumulation left moments of the domain, which would be removed."""
    if (root / MANIFEST).exists() and domain in Manifest.read(root).domains:
        raise InvalidInputError(
            f"statistics_by_block: '{root}' holds moments of '{domain}' that were to be kept: give another store, or "
            "take them from there, with open_store"
        )
