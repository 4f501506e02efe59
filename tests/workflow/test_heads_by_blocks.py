"""Heads in a run file whose network goes block by block: found, narrowed and weighed within each block."""

import json
import shutil

import pytest
import torch

import dalr_stream as ds
from dalr_stream.errors import ConfigError
from dalr_stream.network.surgery.plan import NarrowHeads
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

CODE = """
import torch
from torch import nn
from attentions import FixedScale, block


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.classes = nn.Linear(12, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(block(FixedScale, groups=2) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for one in self.blocks:
            x = one(x)
        return self.classes(x.mean(1))


def build():
    return Classifier()


def batches(*, seed, samples=90):
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(samples, 7, 12, generator=generator)
    return list(zip(inputs.split(30), (inputs[:, 0, 0] > 0).long().split(30)))
"""
RUN_FILE = """
[run]
name = "heads"
output = "out"

[network]
build = "attention_blocks:build"
weights = "weights.safetensors"
layers = ["blocks.*"]
blocks = true

[capture]
keep_activations = false

[domains.target]
batches = "attention_blocks:batches"

[solve]
methods = ["dalr_anchored_affine", "heads"]

[evaluate]
batches = "attention_blocks:batches"
ranks = []
"""
NAMED = """
[compress]
"blocks.*.attention.o" = { method = "heads", size = 2 }
"""


@pytest.fixture
def run_file(tmp_path):
    (tmp_path / "attention_blocks.py").write_text(CODE)
    names = {}
    exec(CODE, names)  # noqa: S102  # the text above
    torch.manual_seed(0)
    ds.network.save_weights(names["build"](), tmp_path / "weights.safetensors")
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE)
    return path


BUDGET = "compress.params='60%'"
IN_TURN = "compress.order='sequential'"
ATTENTION = "network.layers=['blocks.*.attention.*']"
WEIGHTED = (
    "network.gradients=['blocks.*']",
    "solve.methods=['dalr_anchored_affine', 'dalr_weighted_affine', 'heads', 'heads_weighted']",
)
CASES = {
    "named": (NAMED, []),
    "a budget": ("", [BUDGET]),
    "weighted, layer after layer": (
        NAMED.replace("heads", "heads_weighted"),
        [IN_TURN, "compress.target='stream'", *WEIGHTED],
    ),
    "a budget, layer after layer": ("", [BUDGET, IN_TURN, "compress.method='heads'", "compress.samples=30", ATTENTION]),
}


@pytest.mark.parametrize("case", CASES)
def test_heads_are_those_of_the_network_in_memory(case, run_file):
    sizes, settings = CASES[case]
    run_file.write_text(RUN_FILE + sizes)
    found = []
    for blocks in ("true", "false"):
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        run.all()
        assert ("network" in vars(run.project)) == (blocks == "false")
        record = json.loads((run.project.output / "compression.json").read_text())["content"]["content"]
        record.pop("gain")  # block by block nothing is measured beside it
        small = ds.load(run.project.compressed, run.project.code.build)
        opened = ds.open_network(run.project.code.build, run.project.compressed)
        batch = run.project.code.first_batch[0]
        assert torch.equal(opened(batch), small(batch))
        assert any(isinstance(step, NarrowHeads) for step in small.compression_plan.steps) or BUDGET in settings
        found.append((small.state_dict(), record, [(one.score, one.macs) for one in run.results.sizes]))
        shutil.rmtree(run.project.output)
    assert found[0][1:] == found[1][1:]
    assert found[0][0].keys() == found[1][0].keys()
    assert all(torch.equal(one, found[1][0][name]) for name, one in found[0][0].items())
    if BUDGET in settings:
        assert any("heads" in trial["plan"] for trial in found[0][1]["choice"]["trials"])


def test_a_dry_run_plans_heads_layer_after_layer(run_file):
    settings = [ATTENTION, "compress.ratio='50%'", IN_TURN]
    plain, weighted, factors = (
        dry_run(Project(load_config(run_file, [*settings, *more]), run_file.parent)).cost.sequence.plans
        for more in ((), WEIGHTED, ["solve.methods=['dalr_anchored_affine']"])
    )
    attention = [f"blocks.{number}.attention.{{}}".format for number in range(2)]
    assert [[one.layers for one in block.passes] for block in plain] == [
        [tuple(map(name, "qkv")), (name("o"),)] for name in attention
    ]
    assert all(one.moments_bytes > other.moments_bytes for one, other in zip(plain, factors, strict=True))
    assert all(one.pass_bytes >= other.pass_bytes for one, other in zip(weighted, plain, strict=True))


def test_a_sweep_that_keeps_no_moments_says_that_heads_need_them(run_file):
    run_file.write_text(
        RUN_FILE.replace("keep_activations = false", "keep_activations = false\n[accumulate]\nkeep_moments = false")
    )
    with pytest.raises(ConfigError, match="heads are solved from the moments of four layers: leave 'heads' out"):
        load_config(run_file, ["compress.ratio='50%'"])
