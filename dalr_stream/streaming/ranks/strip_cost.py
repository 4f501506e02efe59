"""What a pass costs in which ranks share the sums of layers, by arithmetic alone: memory of the rank that needs most.

Each rank holds its strips as often as the rule has lanes or sums, the tile that each layer is filling, and the rows of
two batches: its own, and one that another sent. Rank 0 also takes a block of rows of somebody's sums and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dalr_stream.numerics.linalg.rank_k import SINGLE_BLOCK_BYTES
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.strip_shares import blocks_of, share_out
from dalr_stream.storage.schema import MAX_CHUNK_BYTES
from dalr_stream.streaming.cost import (
    CHUNKS_BEING_SAVED,
    ORDERS_OF_JOINING,
    KeptRecords,
    LayerLoad,
    in_mib,
    sums_alive,
    tile_bytes,
    turn_bytes,
)

_FLOAT64 = 8
_BATCHES = 2
"""Whose rows a rank holds: the one that it ran, and the one that is being folded."""
_MOST_RANKS = 64
"""As far as a message looks for a number of ranks that is enough."""


@dataclass(frozen=True, slots=True)
class StripPass:
    """Layers whose sums ranks share in one pass over the batches."""

    ranks: int
    layers: tuple[str, ...]
    peak_bytes: int
    """Memory of the rank that needs most."""
    sums_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of that, each layer's sums, on the rank that holds most of them."""


@dataclass(frozen=True, slots=True)
class SharedFold:
    """How ranks that share sums fold: what decides how much each holds."""

    ranks: int
    records: KeptRecords
    segments: int
    threads: int
    forward_bytes: int = 0

    def passes(self, loads: Sequence[LayerLoad], limit_bytes: int | None) -> tuple[StripPass, ...]:
        """Fill passes with layers in their order, as far as they fit; one that fits nowhere has a pass of its own."""
        groups: list[list[LayerLoad]] = []
        for load in loads:
            fits = limit_bytes is None or (groups and self.of([*groups[-1], load]).peak_bytes <= limit_bytes)
            if groups and fits:
                groups[-1].append(load)
            else:
                groups.append([load])
        return tuple(self.of(group) for group in groups)

    def of(self, loads: Sequence[LayerLoad]) -> StripPass:
        """Return what a pass over these layers takes."""
        shares = share_out({load.name: load.features for load in loads}, self.ranks, by_lanes=not self.segments)
        held = [0] * self.ranks
        most: dict[str, int] = {}
        beside = self.forward_bytes
        for load in loads:
            mine = [0] * self.ranks
            for piece in shares[load.name]:
                mine[piece.rank] += self._copies(load) * _FLOAT64 * piece.strip.cells
                beside = max(beside, self._beside(load, piece.strip))
            held = [a + b for a, b in zip(held, mine, strict=True)]
            most[load.name] = max(mine)
        rows = sum(tile_bytes(load) + _BATCHES * load.batch_bytes for load in loads)
        return StripPass(self.ranks, tuple(load.name for load in loads), max(held) + rows + beside, most)

    def remedies(self, load: LayerLoad, limit_bytes: int) -> list[str]:
        """Say what would make the strips of one layer smaller, and what a rank would need then."""
        remedies = []
        enough = self.enough_for(load, limit_bytes)
        if enough is not None:
            remedies.append(f"start {enough.ranks} ranks ({in_mib(enough.peak_bytes)} each)")
        if self.segments:
            lanes = replace(self, segments=0).of([load])
            remedies.append(f"fold by lanes, which hold one sum (segment_batches = 0, {in_mib(lanes.peak_bytes)})")
        if self.records.heldout:
            bare = replace(self, records=replace(self.records, heldout=False)).of([load])
            remedies.append(f"keep no held-out share ({in_mib(bare.peak_bytes)})")
        return remedies

    def enough_for(self, load: LayerLoad, limit_bytes: int) -> StripPass | None:
        """Return the pass over one layer with as many more ranks as it fits on, doubled each time; None for none."""
        more = self
        while 2 * more.ranks <= _MOST_RANKS:
            more = replace(more, ranks=2 * more.ranks)
            if (found := more.of([load])).peak_bytes <= limit_bytes:
                return found
        return None

    def _copies(self, load: LayerLoad) -> int:
        sums = sums_alive(self.segments) if self.segments else load.lanes
        return sums * self.records.at_once * self.records.partitions + bool(self.records.summing)

    def _beside(self, load: LayerLoad, strip: Strip) -> int:
        """Count what comes and goes: tiles being folded, lanes joined, shards added up, sums received and saved."""
        record = _FLOAT64 * strip.cells
        folding = turn_bytes(load, self.records.heldout, strip.stop) + self.threads * SINGLE_BLOCK_BYTES
        joining = ORDERS_OF_JOINING * self.records.at_once * record if load.lanes > 1 and not self.segments else 0
        block = max(one.cells for one in blocks_of(Strip(0, load.features)))
        chunk = min(MAX_CHUNK_BYTES, _FLOAT64 * load.features**2)
        saving = (1 + self.records.at_once) * _FLOAT64 * block + CHUNKS_BEING_SAVED * chunk
        return max(folding, joining, self.records.summing * record, saving)
