"""Peak memory of one step of a run, in a fresh process, and what is planned: prints both, in bytes.

A run file of one's own, or a deep network of random weights. The steps before have been done, in another process; the
network and its first batch are there before, and every library was used once, by a whole run of a tiny network. See
`peak_memory` for how a peak is told.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from peak_memory import baseline, peak_above
from tiny_run_file import write_run

from dalr_stream.errors import DalrStreamWarning
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.run_cost import cost_of

CODE = """
import torch
from torch import nn


def build(width, layers):
    torch.manual_seed(0)
    sizes = [width] * layers
    return nn.Sequential(*(part for size in sizes for part in (nn.Linear(size, size), nn.ReLU())), nn.Linear(width, 10))


def batches(width, samples, count, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(samples, width, generator=generator)
    return [(draw(), torch.zeros(samples, dtype=torch.long)) for _ in range(count)]
"""
RUN_FILE = """
[run]
name = "deep"
output = "out"

[network]
build = "deep:build"
layers = ["*"]
options = {{ width = {width}, layers = {layers} }}

[domains.target]
batches = "deep:batches"
options = {{ width = {width}, samples = 256, count = 8 }}

[capture]
keep_activations = false

[solve]
methods = ["dalr_anchored_affine", "spectral"]

[compress]
params = "40%"

[evaluate]
batches = "deep:batches"
options = {{ width = {width}, samples = 256, count = 2 }}
ranks = [8, 64]
"""
STEPS = ("accumulate", "solve", "compress", "evaluate", "report")


def write_deep(folder, width, layers):
    """Write the run file of a network of so many layers and its module; return the run file."""
    folder.mkdir()
    (folder / "deep.py").write_text(CODE)
    path = folder / "run.toml"
    path.write_text(RUN_FILE.format(width=width, layers=layers))
    return path


def step_peak(run_file, verb, *overrides):
    """Return bytes held beyond the baseline at the peak of a step, and bytes planned."""
    _ = _in_a_process("do before", run_file, verb, *overrides)
    return json.loads(_in_a_process("measure", run_file, verb, *overrides))


def _in_a_process(*arguments):
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, env=environment).stdout  # noqa: S603


def _warm_up():
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_run(Path(folder) / "tiny")
        named, rest = tiny.read_text().split("[compress]")[0], tiny.read_text().split("[evaluate]")[1]
        tiny.write_text(f'{named}[compress]\nparams = "60%"\n\n[evaluate]{rest}')
        Run.open(tiny).all()


def _measure(run, verb):
    _warm_up()
    planned = {step.step: step.peak_bytes for step in cost_of(run.project, run.network).memory}
    _ = run.project.code.first_batch
    before = baseline()
    getattr(run, verb)()
    return peak_above(before), max(size for step, size in planned.items() if step.startswith(verb))


if __name__ == "__main__":
    warnings.simplefilter("ignore", DalrStreamWarning)
    what, file, named, *settings = sys.argv[1:]
    opened = Run.open(file, set=settings)
    if what == "do before":
        for before in STEPS[: STEPS.index(named)]:
            getattr(opened, before)()
    else:
        json.dump(_measure(opened, named), sys.stdout)
