"""What a run will cost, by arithmetic alone, before anything runs.

The figures follow from the layers' shapes and the fold's rules; nothing is measured and nothing is allocated. Memory
is what the engine holds *beyond* the network and its input batches, which it cannot know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.folding import lane_count, tile_rows

_FLOAT64 = 8
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """One layer's share of the work: `rows` rows of `features` features, over all domains."""

    name: str
    features: int
    rows: int


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
    accumulate_bytes: int
    """Memory while this layer is folded from a store."""
    direct_bytes: int
    """Memory this layer holds for the whole capture when it is folded directly."""
    multiply_adds: int
    """Of the rank-k updates, the dominant cost of accumulation: rows d^2 / 2."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The cost of every layer, and of the run."""

    layers: tuple[LayerCost, ...]

    @property
    def disk_bytes(self) -> int:
        """Disk for activations and moments of all layers."""
        return sum(layer.disk_bytes + layer.moments_bytes for layer in self.layers)

    @property
    def accumulate_peak_bytes(self) -> int:
        """Peak of accumulation from a store, where layers are done one after the other."""
        return max((layer.accumulate_bytes for layer in self.layers), default=0)

    @property
    def direct_peak_bytes(self) -> int:
        """Peak of direct accumulation, where every layer folds during the one pass."""
        return sum(layer.direct_bytes for layer in self.layers)

    def require(self, memory_limit_bytes: int | None) -> None:
        """Raise MemoryLimitError, with the alternative and its figure, where a store run would not fit."""
        if memory_limit_bytes is None or self.accumulate_peak_bytes <= memory_limit_bytes:
            return
        worst = max(self.layers, key=lambda layer: layer.accumulate_bytes)
        raise MemoryLimitError(
            f"layer '{worst.name}': folding {worst.features} features needs "
            f"{worst.accumulate_bytes / 2**20:,.0f} MiB, the limit is {memory_limit_bytes / 2**20:,.0f} MiB: keep no "
            f"held-out share, watch narrower layers, or raise the limit"
        )


def plan(loads: Sequence[LayerLoad], *, domains: int, workers: int, heldout: bool) -> MemoryPlan:
    """Return the cost of capturing and accumulating `loads` on `domains` domains with `workers` threads."""
    return MemoryPlan(tuple(_cost(load, domains, workers, 2 if heldout else 1) for load in loads))


def _cost(load: LayerLoad, domains: int, workers: int, parts: int) -> LayerCost:
    d = load.features
    record = _FLOAT64 * d * d * parts
    lanes = lane_count(d)
    tile = tile_rows(d) * d
    folding = min(lanes, workers) * tile * (_FLOAT32 + _FLOAT64)
    merging = record if lanes > 1 else 0
    return LayerCost(
        name=load.name,
        features=d,
        rows=load.rows,
        disk_bytes=load.rows * d * _FLOAT32,
        moments_bytes=record * domains,
        accumulate_bytes=lanes * record + merging + folding,
        direct_bytes=lanes * record + merging + lanes * tile * _FLOAT64 + tile * _FLOAT32,
        multiply_adds=load.rows * d * d // 2,
    )
