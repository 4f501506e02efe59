"""Peak memory of compressing layer after layer, in a fresh process, and what is planned: prints both, in bytes.

A transformer's feed-forward layers with random weights. The network and its batches are there before; see `peak_memory`
for how a peak is told, and `peak_run` for a run file's layers.
"""

import json
import os
import subprocess
import sys
import warnings

import torch
from peak_memory import baseline, peak_above
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.cross.cost import PairMemory
from dalr_stream.engine.sequential.onward_passes import kept_of_sample
from dalr_stream.engine.sequential.pass_plan import PassesOf, plan_passes, watched_in_passes
from dalr_stream.errors import DalrStreamWarning
from dalr_stream.network.capture.passes import order_of_execution
from dalr_stream.numerics.methods import Method

METHOD = Method.DALR_ANCHORED_AFFINE
MIB = 2**20


def in_turn_peaks(width, blocks, samples, batches, limit_mib):
    """Return bytes held beyond the baseline at the peak, and bytes planned; no limit where `limit_mib` is 0."""
    command = [sys.executable, __file__, *map(str, (width, blocks, samples, batches, limit_mib))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = subprocess.run(command, check=True, capture_output=True, env=environment).stdout  # noqa: S603
    return json.loads(found)


class Blocks(nn.Module):
    """What a transformer has beside attention: a stream, and two layers a block, the first four times as wide."""

    def __init__(self, width, blocks):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(blocks))

    def forward(self, x):
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(torch.relu(up(norm(x))))
        return x


def _blocks(width, blocks, samples, count, limit_mib):
    torch.manual_seed(0)
    model = Blocks(width, blocks).eval()
    batches = [torch.randn(samples, width) for _ in range(count)]
    names = [f"{part}.{number}" for number in range(blocks) for part in ("up", "down")]
    choices = {name: ds.LayerChoice(METHOD, width // 4) for name in names}
    limit = limit_mib * MIB or None
    folding = ds.Folding(ds.HoldoutRule(0.1), ds.Threads(2), memory_limit_bytes=limit)
    passes = order_of_execution(model, batches[0], names)
    watched = watched_in_passes(model, names, (), None)
    batch = PairMemory.of([model], batches[0], watched, ds.RowRule())
    plan = plan_passes(PassesOf(model, passes, dict.fromkeys(names, (METHOD,))), folding, batch)
    kept = samples * count * kept_of_sample(model, batches[0], passes, ())
    warm = Blocks(16, 1).eval()
    small = {name: ds.LayerChoice(METHOD, 4) for name in ("up.0", "down.0")}
    ds.compress_sequentially(warm, [torch.randn(40, 16)] * 2, small, folding=folding)
    before = baseline()
    ds.compress_sequentially(model, batches, choices, folding=folding)
    return peak_above(before), plan.peak_bytes(kept)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DalrStreamWarning)
    json.dump(_blocks(*map(int, sys.argv[1:])), sys.stdout)
