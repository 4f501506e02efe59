"""Peak memory of folding one layer of a store, in a fresh process: run with a store's path, it prints two figures.

What the process holds once everything is imported and every thread pool is warm is the baseline; the peak is the
kernel's own high-water mark after it was reset, so nothing that comes and goes between two looks is missed. The
allocator is told to give freed blocks back: left alone, glibc keeps one or two, by chance of the threads.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import RowBatch, tile_rows
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.folding import Folding, Threads
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.plan import plan
from dalr_stream.streaming.schedule import accumulate_layer


def increment_of(root, *, share, threads=2):
    """Return bytes held beyond the baseline at the peak, measured in a process of its own."""
    command = [sys.executable, __file__, str(root), str(share), str(threads)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)  # noqa: S603


def projected(features, *, share, threads=2):
    return plan([LayerLoad("fc", features, 0)], threads=threads, heldout_share=share).peak_bytes


def tall_store(root, features, tiles):
    """A store of so many full tiles of one layer, which are all alike: what they are made of does not matter here."""
    height = tile_rows(features)
    rows = np.maximum(np.random.default_rng(0).standard_normal((height, features), np.float32), 0)
    network = NetworkRecord("f" * 64, {"fc": LayerRecord("Linear", features, 1, "w")})
    with open_writer(root, "target", network) as writer:
        for number in range(tiles):
            writer.skip(number, height, str(number))
            writer.write(RowBatch(height, str(number), {"fc": rows}))
        writer.finish()
    return root


def baseline():
    """Return what this process holds now, and forget its peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_above(before):
    """Return the most it held since, beyond that."""
    return _status("VmHWM") - before


def _status(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _fold(root, folding, threads):
    store = ActivationStore(root)
    task = LaneTask(store.root, "target", "fc", folding.rule(store.rows("target", "fc").features))
    return accumulate_layer(task, Threads(threads))


def _main(root, share, threads):
    warm = np.ones((256, 256))
    np.linalg.cholesky(warm @ warm + np.eye(256))
    _fold(Path(root).with_name("warm"), Folding(), int(threads))
    before = baseline()
    found = _fold(Path(root), Folding(HoldoutRule(float(share))), int(threads))
    assert found.training.count
    sys.stdout.write(str(peak_above(before)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
