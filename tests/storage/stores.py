"""Makes small stores of several tiles: batches of rows, a capture that can be stopped, and what to compare."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dalr_stream.numerics.rows import tiling
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer

WIDTHS = {"fc6": 3, "classifier.0": 40}
"""Under `small_tiles` a tile of the first has 32 rows, of the second 4."""


class Killed(Exception):  # noqa: N818  # the end of a process is no error
    """Stands for the end of the process."""


@contextmanager
def unsynced():
    """Spare the disk: syncing decides what a power cut leaves, not what a kill or an exception does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@contextmanager
def small_tiles():
    """Tiles of 4 to 32 rows and 1 KiB, so that a few hundred rows fill many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "MIN_TILE_ROWS", 4)
        patch.setattr(tiling, "MAX_TILE_ROWS", 32)
        patch.setattr(tiling, "MAX_TILE_BYTES", 1024)
        yield


def network(fingerprint="a" * 64, layers=tuple(WIDTHS)):
    return NetworkRecord(fingerprint, {name: LayerRecord("Linear", WIDTHS[name], 5, "w") for name in layers})


def rows_for(samples, per_sample=1, *, dtype=np.float32, seed=0, layers=tuple(WIDTHS)):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(samples * per_sample, WIDTHS[name])).astype(dtype) for name in layers}


def batches_of(rows, sizes, per_sample=1):
    """Cut rows into batches of the given numbers of samples, over and over; each batch's digest is of its bytes."""
    total, start, turn = len(next(iter(rows.values()))) // per_sample, 0, 0
    while start < total:
        stop = min(start + sizes[turn % len(sizes)], total)
        part = {name: block[start * per_sample : stop * per_sample] for name, block in rows.items()}
        digest = hashlib.sha256(b"".join(block.tobytes() for block in part.values())).hexdigest()
        yield RowBatch(stop - start, digest, part)
        start, turn = stop, turn + 1


def capture(root, batches, *, domain="target", net=None, stop_after=None):
    """Write batches as `network.capture` does; `stop_after` batches the writer is abandoned. Returns those skipped."""
    skipped = 0
    with open_writer(Path(root), domain, net or network()) as writer:
        for number, batch in enumerate(batches):
            if stop_after == number:
                raise Killed
            if writer.skip(number, batch.samples, batch.digest):
                skipped += 1
            else:
                writer.write(batch)
        writer.finish()
    return skipped


def read_back(root, layer, domain="target"):
    store = ActivationStore(root)
    return np.concatenate([store.read_tile(domain, layer, tile).rows for tile in range(store.tiles(domain, layer))])


def files_of(root):
    """Every file's bytes, by its path, but for the lock."""
    root = Path(root)
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "writer.lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def flipped(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def assert_holds(root, rows, domain="target"):
    for name, block in rows.items():
        found = read_back(root, name, domain)
        assert found.dtype == block.dtype
        assert np.array_equal(found, block)
