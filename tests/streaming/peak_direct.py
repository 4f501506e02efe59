"""Peak memory of folding many layers directly, in a fresh process, and what is planned: prints both.

The network and its batches are there before; see `peak_memory` for how a peak is told.
"""

import json
import os
import subprocess
import sys

import torch
from peak_memory import baseline, peak_above
from torch import nn

from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.engine.estimate import estimate
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.streaming.folding import Folding, Threads


def direct_peaks(width, layers, samples, batches):
    """Return bytes held beyond the baseline at the peak, and bytes planned, measured in a process of its own."""
    command = [sys.executable, __file__, *map(str, (width, layers, samples, batches))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = subprocess.run(command, check=True, capture_output=True, env=environment).stdout  # noqa: S603
    return json.loads(found)


def _main(width, layers, samples, count):
    torch.manual_seed(0)
    warm = _network(16, 2)
    accumulate_stream(warm, [torch.randn(8, 16)] * 2, select_layers(warm, ["*"]), folding=Folding(workers=Threads(2)))
    model = _network(width, layers)
    batches = [torch.randn(samples, width) for _ in range(count)]
    watched, folding = select_layers(model, ["*"]), Folding(workers=Threads(2))
    planned = estimate(model, {"target": batches}, watched, folding, direct=True).peak_bytes
    before = baseline()
    accumulate_stream(model, batches, watched, folding=folding)
    json.dump([peak_above(before), planned], sys.stdout)


def _network(width, layers):
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)]).eval()


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
