"""What a run will cost, by arithmetic alone, before anything runs: the layers' costs together, under a limit.

The numbers follow from the layers' shapes and the fold's rules; nothing is measured and nothing is allocated. Memory
is what the engine holds *beyond* the process, the network and its input batches, which it cannot know.

Under a limit the plan trades time for memory: folding from a store, a wide matrix is cut into strips, each a pass over
its rows; folding directly, the layers are done in groups, each a pass of the data through the network, and where there
are several ranks these share the sums of a layer that fits in none. What does not fit even so is refused, with the
alternatives and what each needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.linalg.rank_k import BLOCK_COLUMNS, SINGLE_BLOCK_BYTES
from dalr_stream.numerics.statistics.fold_rule import lane_count, strips
from dalr_stream.streaming.cost import (
    KeptRecords,
    LayerCost,
    LayerLoad,
    in_mib,
    layer_cost,
    record_bytes,
    store_bytes_of,
    tile_bytes,
    turn_bytes,
)
from dalr_stream.streaming.ranks.strip_cost import SharedFold, StripPass

TILES_WRITTEN = 2
"""A tile put together from batches, and its packed form."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The cost of every layer, and of the run."""

    layers: tuple[LayerCost, ...]
    direct: bool
    groups: tuple[tuple[str, ...], ...]
    """Layers folded in the same pass through the network, for a direct run; all of them for a capture."""
    shared_bytes: int
    """Memory that the layers of a direct run take turns in."""
    memory_limit_bytes: int | None
    alternatives: tuple[str, ...]
    """Other ways to run the layer that needs most, and what each needs."""
    disk_alternatives: tuple[tuple[str, int], ...] = ()
    """Other ways to run that take less disk, and the bytes of moments that each leaves there."""
    forward_bytes: int = 0
    """What the passes of a batch, forward and where gradients are taken back, hold beside the network, if known."""
    stream_bytes: int = 0
    """Disk for what blocks give each other, while a network runs block by block."""
    moments_at_once_bytes: int | None = None
    """Disk for moments where no more than two blocks have theirs at once; None where all are kept."""
    blocks: int = 0
    """Passes that such a network is run in, a block each; 0 for one that is run whole."""
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rows of each stream on each domain, by the domain's name, where loaders told."""
    batches: Mapping[str, int] = field(default_factory=dict)
    """Batches of each domain, where loaders told."""
    varying: frozenset[str] = frozenset()
    """Streams of which samples may give unequal numbers of rows."""
    strips: tuple[StripPass, ...] = ()
    """Those of the passes in which ranks share the sums of each layer; the others deal the batches to them."""

    def in_strips(self, layer: str) -> StripPass | None:
        """Return the pass in which ranks share a layer's sums; None where each rank holds them whole."""
        return next((one for one in self.strips if layer in one.layers), None)

    @property
    def activations_bytes(self) -> int:
        """Disk for the activations of all layers."""
        return 0 if self.direct else sum(layer.disk_bytes for layer in self.layers)

    @property
    def disk_bytes(self) -> int:
        """Disk for activations and moments of all layers."""
        moments = sum(layer.moments_bytes for layer in self.layers)
        return self.activations_bytes + (moments if self.moments_at_once_bytes is None else self.moments_at_once_bytes)

    @property
    def checkpoint_bytes(self) -> int:
        """Disk for checkpoints, which go once the moments are there; one that is written stands beside the one before.

        From a store of the widest layer, since layers are folded in turn. Directly of all layers, in two slots.
        """
        each = [layer.checkpoint_bytes for layer in self.layers]
        widest = max(each, default=0)
        return 2 * sum(each) + widest if self.direct else 2 * widest

    @property
    def disk_peak_bytes(self) -> int:
        """The most disk that capturing and accumulating take at once."""
        return self.disk_bytes + self.checkpoint_bytes + self.stream_bytes

    @property
    def peak_bytes(self) -> int:
        """Peak memory: of the widest layer from a store, of the heaviest group of layers directly, on one rank."""
        if not self.direct:
            return max((layer.store_bytes for layer in self.layers), default=0)
        held = {layer.name: layer.direct_bytes for layer in self.layers if self.in_strips(layer.name) is None}
        whole = max((sum(held.get(name, 0) for name in group) for group in self.groups), default=0)
        return max((self.shared_bytes + whole if held else 0, *(one.peak_bytes for one in self.strips)))

    @property
    def capture_bytes(self) -> int:
        """Memory while rows are streamed into a store: a forward pass, its rows, and a tile of every layer."""
        widest = max((layer.capture_bytes for layer in self.layers), default=0)
        return self.forward_bytes + sum(layer.capture_bytes for layer in self.layers) + TILES_WRITTEN * widest

    @property
    def multiply_adds(self) -> int:
        """Of all rank-k updates."""
        return sum(layer.multiply_adds for layer in self.layers)

    def require(self) -> None:
        """Raise MemoryLimitError, with the alternatives and what each needs, where the run would not fit."""
        limit = self.memory_limit_bytes
        if limit is None or self.peak_bytes <= limit:
            return
        worst = max(self.layers, key=_direct if self.direct else _from_store)
        shared = self.in_strips(worst.name)
        how = "directly" if self.direct else "from a store"
        raise MemoryLimitError(
            f"layer '{worst.name}': folding {worst.features:,} features needs {in_mib(self.peak_bytes)} "
            f"{how if shared is None else f'on each of {shared.ranks} ranks'}, the limit is {in_mib(limit)}: "
            + "; ".join((*self.alternatives, "or raise the limit"))
        )


def plan(  # noqa: PLR0913  # what decides a cost, each by its name
    loads: Sequence[LayerLoad],
    *,
    threads: int,
    readers: int = 1,
    heldout_share: float,
    shards: int = 1,
    domains: int = 1,
    direct: bool = False,
    memory_limit_bytes: int | None = None,
    forward_bytes: int = 0,
    segments: int = 0,
    ranks: int = 1,
) -> MemoryPlan:
    """Return the cost of capturing and accumulating `loads` on `domains` domains with `threads` threads.

    Each of them has `readers` others that read a store ahead of it.
    `shards` are counted on every domain, an upper bound where only some of them keep any. `forward_bytes` are what a
    batch's passes through the network hold. `segments` of the batches are folded where there are some, see
    `Folding.segments`; directly, by each of `ranks` processes, within the limit. These share the sums of a layer that
    does not fit in one, and where there are no segments those of all.
    """
    records = KeptRecords(heldout_share > 0, shards)
    layers = tuple(
        layer_cost(load, domains, threads, records, memory_limit_bytes, readers=readers, segments=segments)
        for load in loads
    )
    working = threads * SINGLE_BLOCK_BYTES
    shared = max((turn_bytes(load, heldout_share) + tile_bytes(load) + working for load in loads), default=0)
    shared = max(shared, forward_bytes)  # a batch goes through the network before its rows are folded
    room = None if memory_limit_bytes is None or not direct else memory_limit_bytes - shared
    fold = SharedFold(ranks if direct else 1, records, segments, threads, forward_bytes)
    parted = [] if fold.ranks == 1 else _parted(loads, layers, segments, room)
    strips = fold.passes(parted, memory_limit_bytes)
    whole = [layer for layer in layers if layer.name not in {load.name for load in parted}]
    return MemoryPlan(
        layers,
        direct,
        (*_groups(whole, room), *(one.layers for one in strips)),
        shared,
        memory_limit_bytes,
        _alternatives(loads, layers, fold, direct=direct, heldout_share=heldout_share, limit_bytes=memory_limit_bytes),
        _less_disk(loads, records, domains, direct=direct),
        forward_bytes,
        strips=strips,
    )


def _parted(
    loads: Sequence[LayerLoad], layers: Sequence[LayerCost], segments: int, room_bytes: int | None
) -> list[LayerLoad]:
    """Return the layers whose sums ranks share: those that no rank has room for, and without segments all."""
    pairs = zip(loads, layers, strict=True)
    return [load for load, cost in pairs if not segments or (room_bytes is not None and cost.direct_bytes > room_bytes)]


def _groups(layers: Sequence[LayerCost], room_bytes: int | None) -> tuple[tuple[str, ...], ...]:
    """Fill passes with layers in their order; one that fits nowhere has a pass of its own."""
    groups: list[list[str]] = []
    left = 0
    for layer in layers:
        if not groups or (room_bytes is not None and layer.direct_bytes > left):
            groups.append([])
            left = room_bytes or 0
        groups[-1].append(layer.name)
        left -= layer.direct_bytes
    return tuple(tuple(group) for group in groups)


def _alternatives(
    loads: Sequence[LayerLoad],
    layers: Sequence[LayerCost],
    fold: SharedFold,
    *,
    direct: bool,
    heldout_share: float,
    limit_bytes: int | None,
) -> tuple[str, ...]:
    """Say what could be done about the layer that needs most, and what it would need then."""
    if not loads:
        return ()
    load, cost = max(zip(loads, layers, strict=True), key=lambda pair: (_direct if direct else _from_store)(pair[1]))
    records, threads = fold.records, fold.threads
    if fold.ranks > 1:
        return tuple(fold.remedies(load, limit_bytes or 0))
    remedies = []
    if direct:
        remedies.append(f"capture to a store first ({in_mib(cost.store_bytes)} in {cost.passes} passes over the rows)")
        enough = fold.enough_for(load, limit_bytes or 0)
        if enough is not None:
            remedies.append(f"share its sums out to {enough.ranks} ranks ({in_mib(enough.peak_bytes)} each)")
    elif lane_count(load.features) == 1:
        narrowest = strips(load.features, 0)
        least = max(store_bytes_of(load, strip, records.at_once, threads) for strip in narrowest)
        remedies.append(f"the narrowest strips of {BLOCK_COLUMNS} rows need {in_mib(least)}")
    if records.shards > 1:
        whole = plan([load], threads=threads, heldout_share=heldout_share, direct=direct)
        remedies.append(f"keep no shards ({in_mib(whole.peak_bytes)} uncut)")
    elif heldout_share:
        bare = plan([load], threads=threads, heldout_share=0.0, direct=direct)
        remedies.append(f"keep no held-out share ({in_mib(bare.peak_bytes)} uncut)")
    if load.outputs is not None and load.outputs < load.features:
        outputs = LayerLoad(load.name, load.outputs, load.rows, load.itemsize)
        narrow = plan([outputs], threads=threads, heldout_share=heldout_share, direct=direct)
        remedies.append(
            f"watch its {load.outputs:,} outputs alone, which anchored DALR needs ({in_mib(narrow.peak_bytes)})"
        )
    return tuple(remedies)


def _less_disk(
    loads: Sequence[LayerLoad], records: KeptRecords, domains: int, *, direct: bool
) -> tuple[tuple[str, int], ...]:
    """Say what could be left out of the disk, and what moments would take there then."""
    each = records.count * domains
    moments = sum(record_bytes(load.features) for load in loads) * each
    found = []
    if not direct:
        found.append(("keep no activations (capture.keep_activations = false)", moments))
    if records.count > 1:
        without = "keep neither held-out rows nor shards (accumulate.heldout_share = 0, shards = 1)"
        found.append((without, moments // records.count))
    narrow = {load.name: load.outputs for load in loads if load.outputs is not None and load.outputs < load.features}
    if narrow:
        least = sum(record_bytes(narrow.get(load.name) or load.features) for load in loads) * each
        which = f"'{next(iter(narrow))}'" if len(narrow) == 1 else f"{len(narrow)} layers"
        found.append((f"watch the outputs of {which} alone, which anchored DALR needs", least))
    return tuple(found)


def _direct(layer: LayerCost) -> int:
    return layer.direct_bytes


def _from_store(layer: LayerCost) -> int:
    return layer.store_bytes
