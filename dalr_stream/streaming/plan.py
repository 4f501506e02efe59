"""What a run will cost, by arithmetic alone, before anything runs.

The figures follow from the layers' shapes and the fold's rules; nothing is measured and nothing is allocated. Memory
is what the engine holds *beyond* the process, the network and its input batches, which it cannot know.

Under a limit the plan trades time for memory: folding from a store, a wide matrix is cut into strips, each a pass over
its rows; folding directly, the layers are done in groups, each a pass of the data through the network. What does not
fit even so is refused, with the alternatives and their figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.folding import Strip, lane_count, strips
from dalr_stream.numerics.rank_k import BLOCK_COLUMNS, SINGLE_BLOCK_BYTES
from dalr_stream.numerics.tiling import tile_rows
from dalr_stream.storage.schema import MAX_CHUNK_BYTES

_FLOAT64 = 8
_FLOAT32 = 4

TILES_IN_FLIGHT = 4
"""Per worker: the tile being folded, the next one, and the next one's bytes before and while they are unpacked."""
CHUNKS_BEING_SAVED = 3
"""A record leaves memory a chunk at a time: the chunk, its packed form, and the one it is merged with in a strip."""
ORDERS_OF_JOINING = 2
"""Joining two lanes makes the new matrix and the rank-one term between them."""


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """One layer's share of the work: `rows` rows of `features` features, over all domains."""

    name: str
    features: int
    rows: int
    itemsize: int = _FLOAT32
    """Bytes of one activation."""
    outputs: int | None = None
    """Width of the layer's outputs, where they could be watched instead."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one layer costs."""

    name: str
    features: int
    rows: int
    disk_bytes: int
    """Activations on disk before compression: an upper bound, zstd makes it less."""
    moments_bytes: int
    """Moment records kept on disk."""
    strips: tuple[Strip, ...]
    """How the matrix is cut when folded from a store: as many passes over the rows."""
    store_bytes: int
    """Memory while this layer is folded from a store, so cut."""
    direct_bytes: int
    """Memory this layer holds for a whole pass when it is folded directly."""
    multiply_adds: int
    """Of the rank-k updates, the dominant cost of accumulation: rows d^2 / 2."""
    hands: int = 1
    """Parts of the rows folded in turn: each shard and the held-out rows, where shards are kept."""
    sum_strips: tuple[Strip, ...] = ()
    """How the matrix is cut when shards are added up."""

    @property
    def passes(self) -> int:
        """Times its rows are read from the store."""
        return len(self.strips) * self.hands


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
    """Other ways to run the layer that needs most, with their figures."""

    @property
    def disk_bytes(self) -> int:
        """Disk for activations and moments of all layers."""
        kept = 0 if self.direct else sum(layer.disk_bytes for layer in self.layers)
        return kept + sum(layer.moments_bytes for layer in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Peak memory: of the widest layer from a store, of the heaviest group of layers directly."""
        if not self.direct:
            return max((layer.store_bytes for layer in self.layers), default=0)
        held = {layer.name: layer.direct_bytes for layer in self.layers}
        return self.shared_bytes + max((sum(held[name] for name in group) for group in self.groups), default=0)

    @property
    def multiply_adds(self) -> int:
        """Of all rank-k updates."""
        return sum(layer.multiply_adds for layer in self.layers)

    def require(self) -> None:
        """Raise MemoryLimitError, with the alternatives and their figures, where the run would not fit."""
        limit = self.memory_limit_bytes
        if limit is None or self.peak_bytes <= limit:
            return
        worst = max(self.layers, key=_direct if self.direct else _from_store)
        raise MemoryLimitError(
            f"layer '{worst.name}': folding {worst.features:,} features needs {_mib(self.peak_bytes)} "
            f"{'directly' if self.direct else 'from a store'}, the limit is {_mib(limit)}: "
            + "; ".join((*self.alternatives, "or raise the limit"))
        )


def plan(
    loads: Sequence[LayerLoad],
    *,
    threads: int,
    heldout_share: float,
    shards: int = 1,
    domains: int = 1,
    direct: bool = False,
    memory_limit_bytes: int | None = None,
) -> MemoryPlan:
    """Return the cost of capturing and accumulating `loads` on `domains` domains with `threads` threads.

    `shards` are counted on every domain, an upper bound where only some of them keep any.
    """
    kept = _Kept(heldout_share > 0, shards)
    layers = tuple(_cost(load, domains, threads, kept, memory_limit_bytes) for load in loads)
    shared = max((_turns(load, heldout_share) + threads * SINGLE_BLOCK_BYTES for load in loads), default=0)
    return MemoryPlan(
        layers,
        direct,
        _groups(layers, None if memory_limit_bytes is None or not direct else memory_limit_bytes - shared),
        shared,
        memory_limit_bytes,
        _alternatives(loads, layers, kept, direct=direct, threads=threads, heldout_share=heldout_share),
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """Which records a layer leaves."""

    heldout: bool
    shards: int

    @property
    def records(self) -> int:
        """On disk, a domain: training, held-out, and the shards where there are some."""
        return 1 + self.heldout + (self.shards if self.shards > 1 else 0)

    @property
    def hands(self) -> int:
        """Parts of the rows folded in turn from a store."""
        return self.shards + self.heldout if self.shards > 1 else 1

    @property
    def at_once(self) -> int:
        """Records a lane folds in one pass from a store; all that are not sums, directly."""
        return 1 if self.shards > 1 else 1 + self.heldout

    @property
    def summing(self) -> int:
        """Matrices held while shards are added in the tree, the rank-one term between two of them counted."""
        return self.shards.bit_length() + 1 + ORDERS_OF_JOINING if self.shards > 1 else 0


def _cost(load: LayerLoad, domains: int, threads: int, kept: _Kept, memory_limit_bytes: int | None) -> LayerCost:
    d, parts = load.features, kept.at_once
    cut = _strips(load, parts, threads, memory_limit_bytes)
    folding = max(_store_bytes(load, strip, parts, threads) for strip in cut)
    summed = _sum_strips(d, kept, memory_limit_bytes)
    summing = kept.summing * _FLOAT64 * max(strip.cells for strip in summed)
    directly = lane_count(d) * parts * kept.hands
    return LayerCost(
        name=load.name,
        features=d,
        rows=load.rows,
        disk_bytes=load.rows * d * load.itemsize,
        moments_bytes=_FLOAT64 * d * d * kept.records * domains,
        strips=cut,
        store_bytes=max(folding, summing),
        direct_bytes=(directly + kept.summing) * _FLOAT64 * d * d + _tile_bytes(load),
        multiply_adds=load.rows * d * d // 2,
        hands=kept.hands,
        sum_strips=summed,
    )


def _sum_strips(features: int, kept: _Kept, memory_limit_bytes: int | None) -> tuple[Strip, ...]:
    """Cut a matrix so that the sum of its shards fits, as far as one block of rows does."""
    if memory_limit_bytes is None or kept.summing * _FLOAT64 * features**2 <= memory_limit_bytes:
        return (Strip(0, features),)
    return strips(features, memory_limit_bytes // (_FLOAT64 * kept.summing))


def _store_bytes(load: LayerLoad, strip: Strip, parts: int, threads: int) -> int:
    """Accumulators, and what comes and goes beside them: tiles, then matrices being joined, then chunks being saved."""
    lanes = lane_count(load.features)
    record = _FLOAT64 * strip.cells
    working = min(lanes, threads) * (TILES_IN_FLIGHT * _tile_bytes(load) + _turns(load, parts - 1, strip.stop))
    working += threads * SINGLE_BLOCK_BYTES  # of float32 products; those of float64 need none
    joining = ORDERS_OF_JOINING * record if lanes > 1 else 0
    saving = CHUNKS_BEING_SAVED * min(MAX_CHUNK_BYTES, _FLOAT64 * load.features**2)
    return lanes * parts * record + max(working, joining, saving)


def _turns(load: LayerLoad, heldout_share: float, columns: int | None = None) -> int:
    """One tile in float64, and its training and held-out rows where they are parted."""
    rows = tile_rows(load.features)
    return _FLOAT64 * (rows + 1) * (columns or load.features) + (_tile_bytes(load) if heldout_share else 0)


def _tile_bytes(load: LayerLoad) -> int:
    return tile_rows(load.features) * load.features * load.itemsize


def _strips(load: LayerLoad, parts: int, threads: int, memory_limit_bytes: int | None) -> tuple[Strip, ...]:
    """Cut the matrix of a one-lane layer so that each strip fits, where any cut does."""
    d = load.features
    whole = Strip(0, d)
    needed = _store_bytes(load, whole, parts, threads)
    if memory_limit_bytes is None or lane_count(d) > 1 or needed <= memory_limit_bytes:
        return (whole,)
    beside = needed - parts * _FLOAT64 * whole.cells
    return strips(d, max(0, memory_limit_bytes - beside) // (_FLOAT64 * parts))


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
    kept: _Kept,
    *,
    direct: bool,
    threads: int,
    heldout_share: float,
) -> tuple[str, ...]:
    """Say what could be done about the layer that needs most, and what it would need then."""
    if not loads:
        return ()
    load, cost = max(zip(loads, layers, strict=True), key=lambda pair: (_direct if direct else _from_store)(pair[1]))
    found = []
    if direct:
        found.append(f"capture to a store first ({_mib(cost.store_bytes)} in {cost.passes} passes over the rows)")
    elif lane_count(load.features) == 1:
        narrowest = strips(load.features, 0)
        least = max(_store_bytes(load, strip, kept.at_once, threads) for strip in narrowest)
        found.append(f"the narrowest strips of {BLOCK_COLUMNS} rows need {_mib(least)}")
    if kept.shards > 1:
        whole = plan([load], threads=threads, heldout_share=heldout_share, direct=direct)
        found.append(f"keep no shards ({_mib(whole.peak_bytes)} uncut)")
    elif heldout_share:
        bare = plan([load], threads=threads, heldout_share=0.0, direct=direct)
        found.append(f"keep no held-out share ({_mib(bare.peak_bytes)} uncut)")
    if load.outputs is not None and load.outputs < load.features:
        outputs = LayerLoad(load.name, load.outputs, load.rows, load.itemsize)
        narrow = plan([outputs], threads=threads, heldout_share=heldout_share, direct=direct)
        found.append(f"watch its {load.outputs:,} outputs alone, which anchored DALR needs ({_mib(narrow.peak_bytes)})")
    return tuple(found)


def _direct(layer: LayerCost) -> int:
    return layer.direct_bytes


def _from_store(layer: LayerCost) -> int:
    return layer.store_bytes


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
