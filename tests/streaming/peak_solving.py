"""Peak memory of solving one layer of a store by one method, in a fresh process, and what is planned.

The store has what a run leaves: weights, moments and, where they are kept, rows of a layer `fc`, and moments of `next`,
which reads it. Memory does not depend on the numbers, so they are random; see `peak_memory` for how a peak is told.
"""

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from peak_memory import baseline, peak_above

from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.solve import solve
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import FewSamplesWarning
from dalr_stream.numerics.linalg.rank_k import usable_cores
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.numerics.sizes.losses import relative_errors
from dalr_stream.numerics.statistics.channels import ChannelReader, ChannelSpan
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.records.solutions import save_solution
from dalr_stream.storage.records.weights import save_layer_weights
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.folding import Folding, Threads
from dalr_stream.streaming.solving_cost import SolvedLayer, solving_cost

BATCH = 256


def solved_store(root, outputs, inputs, rows, *, kept=True, share=0.1, memory_limit_bytes=None):
    """A store of a layer with so many outputs, inputs and samples."""
    rng = np.random.default_rng(0)
    reader = ChannelReader(ChannelSpan("next"), "next", weights=8)
    weights = {
        "fc": rng.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs)),
        "next": np.ones((8, outputs), np.float32),
    }
    layers = {
        "fc": LayerRecord("Linear", inputs, outputs, _digest(weights["fc"]), (reader,), 8),
        "next": LayerRecord("Linear", outputs, 8, _digest(weights["next"])),
    }
    network = NetworkRecord("f" * 64, layers)
    for domain in ("target", "source"):
        with open_writer(root, domain, network) as writer:
            for number, start in enumerate(range(0, rows, BATCH)):
                n = min(BATCH, rows - start)
                blocks = {"fc": rng.standard_normal((n, inputs if domain == "target" else 1), np.float32)}
                blocks["next"] = np.maximum(rng.standard_normal((n, outputs), np.float32), 0)
                writer.skip(number, n, str(number))
                writer.write(RowBatch(n, str(number), blocks))
            writer.finish()
        folding = Folding(HoldoutRule(share), Threads(usable_cores()), memory_limit_bytes)
        accumulate_stored(root, domain=domain, folding=folding)
    for name, weight in weights.items():
        save_layer_weights(root, name, weight, None, {"network": network.fingerprint})
    if not kept:
        delete_activations(root)
    return root


def measured_of(method):
    """What there is to measure of a method."""
    return ("solve", "curves") if method.family is Family.LOW_RANK else ("solve",)


def solved_layer(outputs, inputs, rows, *, kept=True, share=0.1):
    """What the plan knows of the layer of such a store."""
    return SolvedLayer("fc", outputs, inputs, int(rows * (1 - share)), kept, readers=(outputs,))


def planned(method, *shape, **options):
    return solving_cost(solved_layer(*shape, **options), method).peak_bytes


def _digest(weight):
    """As torch's tensors are told apart, which are not needed here."""
    return hashlib.sha256(f"torch.float32{weight.shape}".encode() + weight.tobytes()).hexdigest()


def solving_increment(root, method, what="solve"):
    """Return bytes held beyond the baseline at the peak of solving, or of `curves`, in a process of its own."""
    command = [sys.executable, __file__, str(root), method, what]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)  # noqa: S603


def _solve(root, method):
    store = StoreView.open(root)
    layer = store.layer("fc", "target", "source" if method.needs_source else None)
    save_solution(root, "fc", solve(layer, method), {})


def _curves(root, method):
    store = StoreView.open(root)
    solution = store.solutions("fc", [method])[method]
    for moments in (store.inputs("target", "fc"), store.inputs_heldout("target", None, "fc")):
        relative_errors(solution, moments)


def _main(root, name, what):
    root, method = Path(root), Method(name)
    warnings.simplefilter("ignore", FewSamplesWarning)
    do = {"solve": _solve, "curves": _curves}[what]
    if method.family is Family.LOW_RANK or what == "solve":
        _solve(root.with_name("warm-solve"), method)
    do(root.with_name("warm-solve"), method)
    before = baseline()
    do(root, method)
    sys.stdout.write(str(peak_above(before)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
