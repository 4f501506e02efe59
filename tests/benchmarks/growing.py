"""Memory that grows with the number of batches: the peak of a fresh process at two sizes, and the slope between them.

Run with a verb, a number of batches and a folder, it prints the bytes at the peak beyond what the process held before.
The allocator is told to give freed blocks back, or it would keep those of an earlier size.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.lanes import Pace

FEATURES = 16
NETWORK = NetworkRecord("f" * 64, {"fc": LayerRecord("Linear", FEATURES, 2, "w")})
VERBS = ("capture", "accumulate", "fold directly", "fold directly, 10 checkpoints")


@dataclass(frozen=True)
class Slope:
    """A line of the table."""

    what: str
    peak_mib: float
    """At the larger size."""
    bytes_a_batch: float


def slopes(few: int, many: int) -> list[Slope]:
    """Measure each verb at two numbers of batches of one row."""
    found = []
    for verb in VERBS:
        low, high = (_peak(verb, count) for count in (few, many))
        found.append(Slope(verb, high / 2**20, (high - low) / (many - few)))
    return found


def _peak(verb: str, batches: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        if verb == "accumulate":
            _capture(Path(folder) / "measured", batches)
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, __file__, verb, str(batches), folder]
        return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)  # noqa: S603  # this file


def _batches(count: int) -> Iterator[RowBatch]:
    row = np.ones((1, FEATURES), np.float32)
    for number in range(count):
        yield RowBatch(1, hashlib.sha256(str(number).encode()).hexdigest(), {"fc": row})


def _capture(root: Path, count: int) -> None:
    with open_writer(root, "t", NETWORK) as writer:
        for batch in _batches(count):
            writer.write(batch)
        writer.finish()


def _fold(root: Path, count: int, checkpoints: int) -> None:
    kept = Checkpoints(root, "t", "@direct-0", {}) if checkpoints else None
    folding = ds.Folding(pace=lambda: Pace(every_tiles=max(count // max(checkpoints, 1), 1)))
    with ThreadPoolExecutor(1) as executor:
        sink = FoldSink(folding, executor, checkpoints=kept)
        for batch in _batches(count):
            sink.write(batch)
        sink.finish()


def _do(verb: str, root: Path, count: int) -> None:
    if verb == "capture":
        _capture(root, count)
    elif verb == "accumulate":
        if not root.exists():
            _capture(root, count)
        accumulate_stored(root, domain="t", folding=ds.Folding(workers=ds.Threads(1)))
    else:
        _fold(root, count, 10 if "checkpoints" in verb else 0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _main(arguments: Sequence[str]) -> None:
    verb, batches, folder = arguments[0], int(arguments[1]), Path(arguments[2])
    _do(verb, folder / "warm", 50)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    _do(verb, folder / "measured", batches)
    sys.stdout.write(str(_status("VmHWM") - before))


if __name__ == "__main__":
    _main(sys.argv[1:])
