"""Stores of made-up rows, written as a capture writes them."""

import numpy as np

from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer


def rows_like(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * 3 + rng.normal(size=d) * 100).astype(np.float32)


def write(sink, rows, samples, size):
    """Send rows of the layers to a sink in batches of `size` samples."""
    for number, start in enumerate(range(0, samples, size)):
        stop = min(start + size, samples)
        cut = {n: r[start * len(r) // samples : stop * len(r) // samples] for n, r in rows.items()}
        if not sink.skip(number, stop - start, str(start)):
            sink.write(RowBatch(stop - start, str(start), cut))


def store_of(root, rows, samples, *, finish=True):
    layers = {name: LayerRecord("Linear", block.shape[1], 2, "w") for name, block in rows.items()}
    with open_writer(root, "target", NetworkRecord("f" * 64, layers)) as writer:
        write(writer, rows, samples, 777)
        if finish:
            writer.finish()
    return ActivationStore(root)
