"""Peak memory of folding joint rows of two stores, in a fresh process: run with a folder, it prints the increment."""

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
from dalr_stream.streaming.paired_tiles import PairedTiles
from dalr_stream.streaming.plan import plan
from dalr_stream.streaming.schedule import accumulate_layer
from dalr_stream.streaming.tile_source import StoredTiles

THREADS = 2


def increment_of_pair(folder, share):
    """Return bytes held beyond the baseline at the peak, measured in a process of its own."""
    command = [sys.executable, __file__, str(folder), str(share)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)  # noqa: S603


def projected_pair(folder, share):
    opened = _tiles(folder).open()
    load = LayerLoad("fc", opened.rows.features, 0, beside_tile_bytes=opened.beside_tile_bytes)
    return plan([load], threads=THREADS, heldout_share=share).peak_bytes


def tall_pair(folder, widths, tiles):
    """Two stores of so many full joint tiles, which are all alike."""
    height = tile_rows(sum(widths))
    for name, features in zip("xz", widths, strict=True):
        rows = np.maximum(np.random.default_rng(0).standard_normal((height, features), np.float32), 0)
        network = NetworkRecord(name * 64, {"fc": LayerRecord("Linear", features, 1, "w")})
        with open_writer(folder / name, "target", network) as writer:
            for number in range(tiles):
                writer.skip(number, height, str(number))
                writer.write(RowBatch(height, str(number), {"fc": rows}))
            writer.finish()
    return folder


def _tiles(folder):
    x, z = (StoredTiles(folder / name, "target", "fc", ActivationStore(folder / name)) for name in "xz")
    return PairedTiles(x, z)


def _fold(folder, folding):
    tiles = _tiles(folder)
    rule = folding.rule(tiles.open().rows.features)
    return accumulate_layer(LaneTask(folder / "x", "target", "fc", rule, source=tiles), Threads(THREADS))


def _status(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _main(folder, share):
    warm = np.ones((256, 256))
    np.linalg.cholesky(warm @ warm + np.eye(256))
    _fold(Path(folder).with_name("warm"), Folding())
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found = _fold(Path(folder), Folding(HoldoutRule(float(share))))
    assert found.training.count
    sys.stdout.write(str(_status("VmHWM") - before))


if __name__ == "__main__":
    _main(*sys.argv[1:])
