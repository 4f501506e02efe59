"""How many requests a store in a bucket asks of its server, by arithmetic alone: from the shapes of what is written.

Puts, and gets of tiles and of parts of matrices, are counted as they are made. The small requests beside them (metadata
read, objects looked for, listings) are counted from above. Three things are left out, as the clock or the link decides
them: a put every `BEAT_SECONDS` while a writer holds the store, checkpoints, and what is asked again after a failure.
Bytes are those before compression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.storage.chunks import rows_of_chunk
from dalr_stream.storage.schema import MOMENTS, WEIGHTS

_FLOAT64 = 8
_SAMPLE = 8
"""Bytes of a row's sample number."""
LOOKED_FOR = 32
"""Small requests of opening, claiming and closing a store, at most."""
READ_BACK = 24
"""The same of reading a record of moments."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What a server is asked."""

    puts: int = 0
    gets: int = 0
    """Of tiles, and of what records hold."""
    small: int = 0
    """At most: metadata read, objects looked for, and listings."""
    put_bytes: int = 0
    got_bytes: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(
            self.puts + other.puts,
            self.gets + other.gets,
            self.small + other.small,
            self.put_bytes + other.put_bytes,
            self.got_bytes + other.got_bytes,
        )

    def __mul__(self, times: int) -> Requests:
        return Requests(
            self.puts * times, self.gets * times, self.small * times, self.put_bytes * times, self.got_bytes * times
        )


NONE = Requests()
CLAIMED = Requests(puts=4, small=LOOKED_FOR)
"""Claiming a store and giving it back: the claim, two puts that must be refused, and the end of the claim."""
BEGUN = Requests(puts=3)
"""A new store: its first manifest, its group, and the manifest that has what the network gives for a probe."""


def of_record(shapes: Sequence[Sequence[int]], itemsize: int = _FLOAT64) -> Requests:
    """Return what writing a record of arrays of these shapes takes: metadata and chunks of each, and the head."""
    chunks = sum(-(-shape[0] // rows_of_chunk(shape, itemsize)) if prod(shape) else 0 for shape in shapes)
    return Requests(len(shapes) + chunks + 1, small=3, put_bytes=sum(map(prod, shapes)) * itemsize)


def of_moments(features: int, *, empty: bool = False) -> Requests:
    """Return what one record of moments takes; an empty one has its mean alone."""
    shapes = [(features,) * len(spec.dimensions) for spec in MOMENTS]
    return of_record(shapes[:1] if empty else shapes)


def of_sum(features: int, shards: int) -> Requests:
    """Return what reading the records of shards back takes, to add them up."""
    record = of_moments(features)
    arrays = len(MOMENTS)
    read = Requests(gets=record.puts - arrays - 1, small=READ_BACK, got_bytes=record.put_bytes)
    return read * (shards if shards > 1 else 0)


def of_strips(features: int, strips: Sequence[Strip], parts: int) -> Requests:
    """Return what a matrix that is folded in strips takes more: chunks that several strips fill, and a checkpoint each.

    At most: the two parts are cut alike, and a chunk that nobody filled yet is asked for all the same.
    """
    if len(strips) == 1:
        return NONE
    height = rows_of_chunk((features, features), _FLOAT64)
    whole = -(-features // height)
    filled = sum(_chunks_touched(strip, height) for strip in strips)
    chunk_bytes = height * features * _FLOAT64
    matrix = Requests(filled - whole, filled + whole, 4 * filled, (filled - whole) * chunk_bytes, filled * chunk_bytes)
    kept = [of_record([(4, features), (strip.stop - strip.first, strip.stop)] * parts) for strip in strips]
    return sum(kept, matrix * parts)


def _chunks_touched(strip: Strip, height: int) -> int:
    own = sum(
        (min(row + height, strip.stop) - 1) // height - row // height + 1
        for row in range(strip.first, strip.stop, height)
    )
    return own + -(-strip.first // height)


def of_weights(outputs: int, inputs: int, itemsize: int) -> Requests:
    """Return what a layer's weight and bias take."""
    sizes = {"output": outputs, "input": inputs}
    return of_record([[sizes[name] for name in spec.dimensions] for spec in WEIGHTS], itemsize)


@dataclass(frozen=True, slots=True)
class CapturedRows:
    """Rows of one layer on one domain, as batches bring them."""

    features: int
    rows: int
    a_batch: int
    itemsize: int
    varying: bool
    """Whether samples may give unequal numbers of rows: then each row's sample is kept too."""

    @property
    def arrays(self) -> int:
        """Arrays that they lie in."""
        return 1 + self.varying

    @property
    def tiles(self) -> int:
        """Of each array."""
        return -(-self.rows // tile_rows(self.features))

    def full_after(self, batches: int) -> int:
        """Return how many tiles are full after so many batches."""
        return min(self.rows, batches * self.a_batch) // tile_rows(self.features)

    def filled_at(self, batch: int) -> int | None:
        """Return the first batch from number `batch` (1, 2, ...) on that fills a tile; None where none does."""
        rows = (self.full_after(batch - 1) + 1) * tile_rows(self.features)
        return -(-rows // self.a_batch) if self.a_batch and rows <= self.rows else None

    @property
    def bytes(self) -> int:
        """Of tiles, which are filled up."""
        height = tile_rows(self.features)
        return self.tiles * height * (self.features * self.itemsize + self.varying * _SAMPLE)


def of_captured(layers: Mapping[str, CapturedRows], batches: int, lost_at_most: int) -> tuple[dict[str, Requests], int]:
    """Return what the rows of one domain take, layer by layer, and how many manifests are put.

    Each commit puts the manifest, and the length of every array that grew since the one before.
    """
    grown, manifests = dict.fromkeys(layers, 0), 0
    before = dict.fromkeys(layers, 0)
    for batch in commits(list(layers.values()), batches, lost_at_most):
        manifests += 1
        for name, layer in layers.items():
            tiles = layer.tiles if batch is None else layer.full_after(batch)
            grown[name] += tiles > before[name]
            before[name] = tiles
    found = {
        name: Requests(
            layer.arrays * (1 + layer.tiles + grown[name]),
            small=layer.arrays * (4 + grown[name]),
            put_bytes=layer.bytes,
        )
        for name, layer in layers.items()
    }
    return found, manifests


def commits(layers: Sequence[CapturedRows], batches: int, lost_at_most: int) -> Iterator[int | None]:
    """Yield after which batches a capture commits, and None for its end; see `storage.writer.LOST_AT_MOST`."""
    batch: int | None = 1
    while batch is not None and batch <= batches:
        batch = min((full for layer in layers if (full := layer.filled_at(batch)) is not None), default=None)
        if batch is not None and batch <= batches:
            yield batch
            batch += max(batch // lost_at_most, 1)
    yield None


def of_read(rows: CapturedRows, times: int) -> Requests:
    """Return what reading all tiles of a layer so often takes; a row's sample may be in the tile before."""
    samples = 2 * rows.tiles - 1 if rows.varying and rows.tiles else 0
    read = Requests(gets=rows.tiles + samples, small=1 + 2 * rows.tiles * rows.varying, got_bytes=rows.bytes)
    return read * times
