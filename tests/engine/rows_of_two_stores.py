"""Two stores of made-up rows that belong together, as captures of two networks leave them."""

import numpy as np
import torch

from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.manifest import LayerRecord, NetworkRecord
from dalr_stream.storage.records import save_layer_weights
from dalr_stream.storage.writer import open_writer


def both(n, d, m, seed=0):
    """Correlated x (n, d) and z (n, m), whose means dwarf their spread."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) + 10 * rng.normal(size=d)).astype(np.float32)
    z = (x[:, : min(d, m)] @ rng.normal(size=(min(d, m), m)) / np.sqrt(d) + rng.normal(size=(n, m))).astype(np.float32)
    return x, z


def two_stores(folder, x, z):
    """The original's store, with outputs z of 'fc', and the compressed network's, with its inputs x."""
    weight = np.zeros((z.shape[1], x.shape[1]), np.float32)
    sides = {"z": ("fc@outputs", z, "outputs", "b" * 64), "x": ("fc", x, "inputs", "a" * 64)}
    for name, (stream, rows, side, fingerprint) in sides.items():
        record = LayerRecord("Linear", x.shape[1], z.shape[1], tensor_digest(torch.from_numpy(weight)), side=side)
        with open_writer(folder / name, "target", NetworkRecord(fingerprint, {stream: record})) as writer:
            for number, start in enumerate(range(0, len(rows), 500)):
                part = rows[start : start + 500]
                writer.write(RowBatch(len(part), str(number), {stream: part}))
            writer.finish()
        save_layer_weights(folder / name, "fc", weight, None, {"network": fingerprint})
    return folder / "z", folder / "x"
