"""What decides the bits of a layer's moments, besides the rows: the rule by which they are folded.

A wide layer has one lane, whose scatter matrix may be cut into strips of rows; see `statistics.folding`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.linalg.rank_k import BLOCK_COLUMNS
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.centring import RUN_ROWS

NUMPY = "numpy"
ANY_BLAS = "any"
"""Several took part, of builds, of kernels or of ways to add up: as good, but not the same bits on the next run."""


def lane_count(features: int) -> int:
    """Return L, the lanes of a fold: 8 while accumulators are small, 1 where column blocks keep the cores busy."""
    if features <= 1024:
        return 8
    return 4 if features <= 2048 else 1


PRODUCT_ROWS = 1024
"""Rows of a product of a narrow layer."""
SUMMATION = f"means of {RUN_ROWS} rows, products of {PRODUCT_ROWS:,}"
"""How this version adds up a tile's rows. Another way rounds differently, so a fold begun in one ends in the same."""


def product_rows(features: int) -> int:
    """Return how many rows of a tile a product takes at most.

    Of a narrow layer as many as stay near a core's cache from centring to product, which takes some 5 % off both. A
    matrix of several blocks would be read and written more often, and gains nothing.
    """
    return PRODUCT_ROWS if features <= BLOCK_COLUMNS else tile_rows(features)


@dataclass(frozen=True, slots=True)
class FoldRule:
    """All that decides the bits of a layer's moments, besides the rows."""

    features: int
    holdout: HoldoutRule = field(default_factory=HoldoutRule)
    precision: Precision = Precision.DOUBLE
    engine: str = NUMPY
    """What takes the products: numpy's BLAS, or another library on a kind of device, which rounds in its own way."""
    shards: int = 1
    """Records that the training samples are assigned to, by `HoldoutRule.assign`; the training record is their sum."""
    segment_batches: int = 0
    """N: tiles are cut at every N-th batch, and what lies between, a segment, is folded by itself; see `segments`. 0
    where tiles are cut across batches and dealt to lanes."""
    blas: str = ""
    """BLAS build and kernel of numpy's products, or `ANY_BLAS`; empty where nobody asks, or other libraries fold."""

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise InvalidInputError(f"shards must be 1 (none are kept) or more, got {self.shards}")
        if self.segment_batches < 0:
            raise InvalidInputError(
                f"segment_batches must be 1 or more, or 0 for none, got {self.segment_batches}: a segment of several "
                "tiles costs least"
            )

    @property
    def tile_rows(self) -> int:
        """T."""
        return tile_rows(self.features)

    @property
    def lanes(self) -> int:
        """L; one where segments are folded, each by itself."""
        return 1 if self.segment_batches else lane_count(self.features)

    @property
    def parts(self) -> int:
        """Records a lane folds: training, and held-out where there is a share; one where there are shards."""
        return 2 if self.holdout.share and self.shards == 1 else 1

    @property
    def partitions(self) -> tuple[int | None, ...]:
        """What is folded separately: each shard, then the held-out samples; (None,) where nothing is partitioned."""
        return (None,) if self.shards == 1 else tuple(range(self.shards + bool(self.holdout.share)))


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows `first` to `stop` of a scatter matrix, as far as its lower triangle goes: (stop - first) x stop."""

    first: int
    stop: int

    @property
    def cells(self) -> int:
        """Entries."""
        return (self.stop - self.first) * self.stop


def strips(features: int, most_cells: int) -> tuple[Strip, ...]:
    """Cut d x d into strips of at most `most_cells` entries, or of one block of rows where even that is more."""
    cut: list[Strip] = []
    first = 0
    while first < features:
        stop = min(first + BLOCK_COLUMNS, features)
        while stop < features and Strip(first, wider := min(stop + BLOCK_COLUMNS, features)).cells <= most_cells:
            stop = wider
        cut.append(Strip(first, stop))
        first = stop
    return tuple(cut)
