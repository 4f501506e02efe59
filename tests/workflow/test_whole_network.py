"""A residual convolutional network through the run file: factors, selections, tied layers, budgets, fine-tuning."""

import sys

import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.methods import Family
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import capture
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.sizes.stored_menus import rows_a_sample

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(8 * 9, 20), nn.Linear(20, 3)

    def forward(self, x):
        h = torch.relu(self.norm(self.stem(x)))
        h = h + self.conv2(torch.relu(self.conv1(h)))
        return self.fc2(torch.relu(self.fc1(nn.functional.max_pool2d(torch.relu(h), 2).flatten(1))))


def build():
    return Net()


def train(model, *, seed, report):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    report("as it was drawn")


def pictures(*, seed, samples=40, shift=0.0):
    generator = torch.Generator().manual_seed(seed + round(10 * shift))
    return [
        (torch.randn(10, 1, 6, 6, generator=generator) + shift, torch.arange(10) % 3) for _ in range(samples // 10)
    ]
"""

RUN_FILE = """
[run]
name = "whole"
output = "out"

[network]
build = "whole_run:build"
train = "whole_run:train"
layers = ["stem", "conv*", "fc*"]

[domains.target]
batches = "whole_run:pictures"
[domains.source]
batches = "whole_run:pictures"
options = { shift = 0.5 }

[solve]
methods = ["svd", "dalr_anchored_affine", "spectral", "momasp_node", "prune_mean"]
source = "source"

[compress]
stem = { method = "momasp_node", size = 6 }
conv1 = { method = "spectral", size = 8 }
fc1 = { method = "dalr_anchored_affine", size = 5 }

[finetune]
batches = "whole_run:pictures"
epochs = 1

[evaluate]
batches = "whole_run:pictures"
options = { samples = 20 }
ranks = [2, 4]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "whole_run.py").write_text(CODE)
    (folder / "run.toml").write_text(RUN_FILE)
    project = Project(load_config(folder / "run.toml"), folder)
    Run(project).all()
    yield project
    sys.modules.pop("whole_run", None)


def test_every_layer_is_solved_by_what_applies_to_it_and_the_rest_says_why(project):
    store = StoreView.open(project.store)
    assert project.layers == ("stem", "conv1", "conv2", "fc1", "fc2")
    selected = [layer for layer in project.layers if store.readers(layer)]
    assert selected == ["stem", "conv1", "fc1"]
    reasons = {layer: store.manifest.network.layers[layer].unprunable for layer in ("conv2", "fc2")}
    assert "its channels are those of 'stem', tied by an addition" in reasons["conv2"]
    assert "no layer reads them" in reasons["fc2"]
    assert {method.family for method in project.methods(store, "conv2")} == {Family.LOW_RANK}
    assert [reader.stream for reader in store.readers("stem")] == ["conv1@channels", "fc1@channels"]
    decided = results(project).decisions
    assert any("tied by an addition" in line for line in decided)


def test_the_saved_network_is_the_one_of_the_records(project):
    store, net = StoreView.open(project.store), project.network
    found = {layer: store.solutions(layer, [m])[m] for layer, m in (("stem", ds.Method.MOMASP_NODE),)}
    small = ds.load(project.compressed, project.code.build)
    assert (small.stem.out_channels, small.norm.num_features, small.conv2.out_channels) == (6, 6, 6)
    assert (small.conv1.in_channels, small.conv1.out_channels, small.conv2.in_channels) == (6, 8, 8)
    assert small.fc1[0].in_features == 6 * 9
    kept = torch.from_numpy(found["stem"].at_size(6, ridge=1e-3).kept)
    assert torch.equal(small.stem.weight, net.stem.weight[kept])
    tuned = ds.load(project.finetuned, project.code.build)
    assert parameter_count(tuned) == parameter_count(small)
    assert torch.equal(tuned.stem.weight, small.stem.weight)
    assert not torch.equal(tuned.fc2.weight, small.fc2.weight)


def test_the_report_has_curves_for_channels_and_comes_back(project):
    found = results(project)
    methods = {layer.name: [curve.method for curve in layer.score_curves] for layer in found.layers}
    assert "momasp_node" in methods["conv1"]
    assert "momasp_node" not in methods["conv2"]
    assert [size.label.split(":")[0] for size in found.sizes] == ["uncompressed", "compressed", "fine-tuned"]
    assert Results.read(project.report_folder / "results.json").layers[0].next_layer == "conv1 and fc1"


def test_multiply_adds_are_those_of_every_position_though_few_were_kept(project):
    store = StoreView.open(project.store)
    positions = {layer: rows_a_sample(project, store, layer) for layer in project.layers}
    assert positions == {"stem": 36, "conv1": 36, "conv2": 36, "fc1": 1, "fc2": 1}
    assert store.moments("target", "conv1").count < 36 * store.moments("target", "conv1").samples


def test_a_budget_over_selections_counts_what_their_readers_lose(project, tmp_path):
    config = load_config(
        project.folder / "run.toml",
        [
            "compress={}",
            f'run.output="{tmp_path}"',
            'solve.methods=["spectral"]',
            'network.layers=["stem","conv1","fc1"]',
        ],
        {"params": "40%"},
    )
    other = Project(config, project.folder)
    run = Run(other)
    run.train()
    run.accumulate()
    run.compress()
    small, net = ds.load(other.compressed, other.code.build), other.network
    named = ["stem", "conv1", "fc1"]
    weights = [sum(model.get_submodule(name).weight.numel() for name in named) for model in (small, net)]
    assert weights[0] <= 0.4 * weights[1]
    assert set(Compression.read(other.compression).layers) <= set(named)


def test_without_selections_nothing_is_watched_for_them_and_that_is_said(project, tmp_path):
    overrides = [f'run.output="{tmp_path}"', 'solve.methods=["svd"]', 'compress={stem={method="svd",size=2}}']
    other = Project(load_config(project.folder / "run.toml", overrides), project.folder)
    Run(other).train()
    Run(other).accumulate()
    record = StoreView.open(other.store).manifest.network.layers["stem"]
    assert record.readers == ()
    assert "solve.methods had no selection when this was captured" in record.unprunable
    assert capture.made_from(other, "target") != capture.made_from(project, "target")
