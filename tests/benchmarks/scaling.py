"""What a store costs beside its arithmetic, as batches, layers and shards grow: CPU seconds of one process."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.records.weights import save_layer_weights
from dalr_stream.storage.writer import open_writer

FEATURES = 16
FOLDING = ds.Folding(workers=ds.Threads(1))


@dataclass(frozen=True)
class Growth:
    """A line of the table."""

    what: str
    size: str
    seconds: float
    each: float
    """Milliseconds a batch, a layer or a shard: the same on every line where costs are linear."""


def growth(batches: Sequence[int], layers: Sequence[int], shards: Sequence[int]) -> list[Growth]:
    """Measure each of the three alone: six layers of many batches, many layers of few, many shards of one layer."""
    lines: list[Growth] = []
    for count in batches:
        lines += _stored("batches", count, layers=6, batches=count)
    for count in layers:
        lines += _stored("layers", count, layers=count, batches=100)
    for count in shards:
        lines += _merged(count)
    return lines


def _stored(what: str, count: int, *, layers: int, batches: int) -> list[Growth]:
    size = f"{layers:,} layers, {batches:,} batches"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        taken = {
            "capture": _cpu(lambda: _capture(root, layers, batches)),
            "accumulate": _cpu(lambda: accumulate_stored(root, domain="t", folding=FOLDING)),
            "find all up to date": _cpu(lambda: accumulate_stored(root, domain="t", folding=FOLDING)),
        }
    return [Growth(f"{verb}, by {what}", size, seconds, 1e3 * seconds / count) for verb, seconds in taken.items()]


def _merged(count: int) -> list[Growth]:
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / str(number) for number in range(count)]
        for number, root in enumerate(roots):
            _capture(root, 1, 2, seed=number)
            accumulate_stored(root, domain="t", folding=FOLDING)
        out, last = Path(folder) / "out", roots.pop()
        taken = {"merge": _cpu(lambda: ds.merge(roots, out)), "add one": _cpu(lambda: ds.merge([out, last], out))}
    return [Growth(f"{verb}, by shards", f"{count:,} shards", s, 1e3 * s / count) for verb, s in taken.items()]


def _capture(root: Path, layers: int, batches: int, seed: int = 0) -> None:
    names, rng = [f"layer-{number}" for number in range(layers)], np.random.default_rng(seed)
    weight = np.zeros((2, FEATURES), np.float32)
    digest = hashlib.sha256(f"torch.float32{weight.shape}".encode() + weight.tobytes()).hexdigest()
    record = LayerRecord("Linear", FEATURES, 2, digest)
    with open_writer(root, "t", NetworkRecord("f" * 64, dict.fromkeys(names, record))) as writer:
        for name in names if layers == 1 else ():
            save_layer_weights(root, name, weight, None, {})
        for number in range(batches):
            rows = {name: rng.normal(size=(1, FEATURES)).astype(np.float32) for name in names}
            writer.write(RowBatch(1, hashlib.sha256(f"{seed} {number}".encode()).hexdigest(), rows))
        writer.finish()


def _cpu(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun
