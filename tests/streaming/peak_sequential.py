"""Peak memory of compressing layer after layer, in a fresh process, and what is planned: prints both, in bytes.

A transformer's feed-forward layers with random weights, or a run file whose steps before have been done. The network
and its batches are there before; see `peak_memory` for how a peak is told.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peak_memory import baseline, peak_above
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.cross_cost import PairMemory
from dalr_stream.engine.sequential.onward_passes import kept_of_sample
from dalr_stream.engine.sequential.pass_plan import PassesOf, plan_passes, watched_in_passes
from dalr_stream.errors import DalrStreamWarning
from dalr_stream.network.capture.passes import order_of_execution
from dalr_stream.numerics.methods import Method
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.sequence_cost import sequence_cost
from dalr_stream.workflow.step_memory import step_memory
from dalr_stream.workflow.steps.solving_plan import planned_solving

METHOD = Method.DALR_ANCHORED_AFFINE
MIB = 2**20


def in_turn_peaks(width, blocks, samples, batches, limit_mib):
    """Return bytes held beyond the baseline at the peak, and bytes planned; no limit where `limit_mib` is 0."""
    return _measured("blocks", width, blocks, samples, batches, limit_mib)


def run_peaks(run_file, *overrides):
    """Return the same of the compress step of a run file in sequential order; the steps before it are done first."""
    return _measured("run", run_file, *overrides)


def _measured(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
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


def _run(file, *overrides):
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"run.output={json.dumps(str(Path(folder) / 'out'))}", "compress.order='sequential'", *overrides]
        run = Run.open(file, set=settings)
        run.accumulate()
        run.solve()
        project = run.project
        cost = project.estimate()
        solving = planned_solving(project, project.network, cost)
        steps = step_memory(project, project.network, cost, solving, sequence_cost(project, project.network))
        before = baseline()
        run.compress()
        return peak_above(before), max(step.peak_bytes for step in steps if step.step.startswith("compress"))


if __name__ == "__main__":
    warnings.simplefilter("ignore", DalrStreamWarning)
    what, *arguments = sys.argv[1:]
    found = _run(*arguments) if what == "run" else _blocks(*map(int, arguments))
    json.dump(found, sys.stdout)
