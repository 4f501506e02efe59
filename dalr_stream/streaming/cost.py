"""What folding one layer costs, by arithmetic alone: memory from a store and directly, disk, passes, multiply-adds.

Memory is counted as the fold's rules make it: the accumulators of every lane, and the most that comes and goes beside
them (tiles in flight, then matrices being joined, then chunks being saved). Nothing is measured or allocated.
"""

from __future__ import annotations

from dataclasses import dataclass

from dalr_stream.numerics.linalg.rank_k import SINGLE_BLOCK_BYTES
from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.centring import runs_of
from dalr_stream.numerics.statistics.fold_rule import Strip, lane_count, strips
from dalr_stream.storage.schema import MAX_CHUNK_BYTES

_FLOAT64 = 8
_FLOAT32 = 4

TILES_READ_AHEAD = 3
"""Per reader: the next tile, and its bytes before and while they are unpacked."""
CHUNKS_BEING_SAVED = 3
"""A record leaves memory a chunk at a time: the chunk, its packed form, and the one it is merged with in a strip."""
ORDERS_OF_JOINING = 1
"""Joining two lanes makes a new matrix; the rank-one term between them is added a few rows at a time."""


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
    batch_bytes: int = 0
    """Rows of one batch on their way from the network to a tile."""
    beside_tile_bytes: int = 0
    """What reading a tile from a store holds besides it: the two tiles that one of joint rows is cut from."""
    most_rows: int | None = None
    """The most that one domain has; None where that is not known, and rows may fill every lane."""

    @property
    def tile_rows(self) -> int:
        """Rows of the largest tile there will be."""
        height = tile_rows(self.features)
        return height if self.most_rows is None else min(height, self.most_rows)

    @property
    def lanes(self) -> int:
        """Lanes that get a tile; the others take no memory."""
        lanes = lane_count(self.features)
        return lanes if self.most_rows is None else min(lanes, max(1, -(-self.most_rows // tile_rows(self.features))))


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
    capture_bytes: int = 0
    """Memory for a batch of its rows, and for a tile that is being filled: what streaming them into a store takes."""
    partitions: int = 1
    """Parts of the rows folded in turn: each shard and the held-out rows, where shards are kept."""
    checkpoint_bytes: int = 0
    """Disk of one checkpoint of all its lanes, with the rows that fill no tile yet."""
    sum_strips: tuple[Strip, ...] = ()
    """How the matrix is cut when shards are added up."""

    @property
    def passes(self) -> int:
        """Times its rows are read from the store."""
        return len(self.strips) * self.partitions


@dataclass(frozen=True, slots=True)
class KeptRecords:
    """Which records a layer leaves."""

    heldout: bool
    shards: int

    @property
    def count(self) -> int:
        """On disk, a domain: training, held-out, and the shards where there are some."""
        return 1 + self.heldout + (self.shards if self.shards > 1 else 0)

    @property
    def partitions(self) -> int:
        """Parts of the rows folded in turn from a store."""
        return self.shards + self.heldout if self.shards > 1 else 1

    @property
    def at_once(self) -> int:
        """Records a lane folds in one pass from a store; all that are not sums, directly."""
        return 1 if self.shards > 1 else 1 + self.heldout

    @property
    def summing(self) -> int:
        """Matrices held while shards are added in the tree, the one being made counted."""
        return self.shards.bit_length() + 1 + ORDERS_OF_JOINING if self.shards > 1 else 0


def layer_cost(
    load: LayerLoad,
    domains: int,
    threads: int,
    records: KeptRecords,
    memory_limit_bytes: int | None,
    *,
    readers: int = 1,
    segments: int = 0,
) -> LayerCost:
    """Return what a layer costs on `domains` domains, its matrix cut into strips where a limit asks for it.

    Directly it is folded by lanes, or by `segments` of the batches.
    """
    d, parts = load.features, records.at_once
    cut = _strips(load, parts, threads, memory_limit_bytes, readers)
    folding = max(store_bytes_of(load, strip, parts, threads, readers) for strip in cut)
    summed = _sum_strips(d, records, memory_limit_bytes)
    summing = records.summing * _FLOAT64 * max(strip.cells for strip in summed)
    directly = (sums_alive(segments) if segments else load.lanes) * parts * records.partitions
    return LayerCost(
        name=load.name,
        features=d,
        rows=load.rows,
        disk_bytes=load.rows * d * load.itemsize,
        moments_bytes=record_bytes(d) * records.count * domains,
        strips=cut,
        store_bytes=max(folding, summing),
        direct_bytes=(directly + records.summing) * _FLOAT64 * d * d + tile_bytes(load) + load.batch_bytes,
        multiply_adds=load.rows * d * d // 2,
        capture_bytes=tile_bytes(load) + load.batch_bytes,
        partitions=records.partitions,
        checkpoint_bytes=_checkpoint_bytes(load, records, segments),
        sum_strips=summed,
    )


def record_bytes(features: int) -> int:
    """Return the bytes of one moment record: its matrix, in float64."""
    return _FLOAT64 * features * features


def sums_alive(segments: int) -> int:
    """Return how many sums are held at most: in the tree, the one being folded or received, and one being joined."""
    return segments.bit_length() + 2


def _checkpoint_bytes(load: LayerLoad, records: KeptRecords, segments: int) -> int:
    """Count the sums of every lane that has rows, or of the segments, and the rows of a tile that is not full."""
    height = tile_rows(load.features)
    lanes = segments.bit_length() or min(lane_count(load.features), -(-load.rows // height))
    pending = min(load.rows, height) * load.features * load.itemsize
    return lanes * records.at_once * records.partitions * _FLOAT64 * load.features**2 + pending


def _sum_strips(features: int, records: KeptRecords, memory_limit_bytes: int | None) -> tuple[Strip, ...]:
    """Cut a matrix so that the sum of its shards fits, as far as one block of rows does."""
    if memory_limit_bytes is None or records.summing * _FLOAT64 * features**2 <= memory_limit_bytes:
        return (Strip(0, features),)
    return strips(features, memory_limit_bytes // (_FLOAT64 * records.summing))


def store_bytes_of(load: LayerLoad, strip: Strip, parts: int, threads: int, readers: int = 1) -> int:
    """Accumulators, and what comes and goes beside them: tiles, then matrices being joined, then chunks being saved."""
    lanes = load.lanes
    record = _FLOAT64 * strip.cells
    tiles = (1 + TILES_READ_AHEAD * readers) * tile_bytes(load) + readers * load.beside_tile_bytes
    working = min(lanes, threads) * (tiles + turn_bytes(load, parts - 1, strip.stop))
    working += threads * SINGLE_BLOCK_BYTES  # of float32 products; those of float64 need none
    joining = ORDERS_OF_JOINING * record if lanes > 1 else 0
    saving = CHUNKS_BEING_SAVED * min(MAX_CHUNK_BYTES, _FLOAT64 * load.features**2)
    return lanes * parts * record + max(working, joining, saving)


def turn_bytes(load: LayerLoad, heldout_share: float, columns: int | None = None) -> int:
    """Return what folding a tile takes: it in float64, and its training and held-out rows where they are parted.

    Devices have a whole tile in float64. In this process it is the rows of a product: of a narrow layer fewer.
    """
    centred = load.tile_rows + len(runs_of(load.tile_rows)) + 1
    return _FLOAT64 * centred * (columns or load.features) + (tile_bytes(load) if heldout_share else 0)


def tile_bytes(load: LayerLoad) -> int:
    """Return the bytes of the largest tile."""
    return load.tile_rows * load.features * load.itemsize


def _strips(
    load: LayerLoad, parts: int, threads: int, memory_limit_bytes: int | None, readers: int
) -> tuple[Strip, ...]:
    """Cut the matrix of a one-lane layer so that each strip fits, where any cut does."""
    d = load.features
    whole = Strip(0, d)
    needed = store_bytes_of(load, whole, parts, threads, readers)
    if memory_limit_bytes is None or lane_count(d) > 1 or needed <= memory_limit_bytes:
        return (whole,)
    beside = needed - parts * _FLOAT64 * whole.cells
    return strips(d, max(0, memory_limit_bytes - beside) // (_FLOAT64 * parts))


def in_mib(count: int) -> str:
    """Return bytes in words."""
    return f"{count / 2**20:,.0f} MiB"
