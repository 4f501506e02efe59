"""Heads into which positions are rotated, in a run file: solved, stored, evaluated, sized and saved by whole pairs."""

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import ConfigError
from dalr_stream.numerics import head_factors
from dalr_stream.numerics.methods import Method
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.sizes.compression import Compression

CODE = """
import torch
from torch import nn
from attentions import block
from rotary_attentions import Partly, Rotary


class Classifier(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.block, self.classes = block(kind), nn.Linear(12, 3)

    def forward(self, x):
        return self.classes(self.block(x).mean(1))


def build(partly=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(Partly if partly else Rotary)


def batches(*, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(60, 7, 12, generator=generator)
    with torch.no_grad():
        return [(inputs, build()(inputs).argmax(1))]
"""
RUN_FILE = """
[run]
name = "rotary"
output = "out"

[network]
build = "rotary_run:build"
layers = ["block.attention.*"]

[domains.target]
batches = "rotary_run:batches"

[solve]
methods = ["dalr_anchored_affine", "heads"]

[evaluate]
batches = "rotary_run:batches"
ranks = [1, 2, 3, 4, 5, 6, 7]
"""
OUTPUT = "block.attention.o"
HEADS = '[compress]\n"*.o" = { method = "heads", size = 4 }\n'


@pytest.fixture
def opened(tmp_path):
    (tmp_path / "rotary_run.py").write_text(CODE)

    def make(*overrides, named="", sizes=None):
        (tmp_path / "run.toml").write_text(RUN_FILE + named)
        return Run(Project(load_config(tmp_path / "run.toml", overrides, sizes), tmp_path))

    return make


@pytest.mark.parametrize("partly", [False, True])
def test_a_run_from_the_network_to_the_report(opened, partly):
    run = opened(f"network.options={{partly={str(partly).lower()}}}", named=HEADS)
    run.all()
    store = StoreView.open(run.project.store)
    layout = store.heads[OUTPUT]
    assert (layout.size, layout.rotated) == (8, 4 if partly else 8)
    here = head_factors(store.attention(OUTPUT, "target"), layout)
    there = store.solutions(OUTPUT, [Method.HEADS])[Method.HEADS]
    assert np.array_equal(here.score_losses, there.score_losses)
    for size in (2, 4, 6, 8):
        one, other = here.at_size(size), there.at_size(size)
        assert (one.pairs, one.score_loss) == (other.pairs, other.score_loss)
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("queries", "keys", "restore"))
    verify_store(run.project.store).require()
    small, x = ds.load(run.project.compressed, run.project.code.placed), torch.randn(2, 30, 12)
    by_hand = ds.compress(run.project.network, {OUTPUT: here.at_size(4)}, example=run.project.code.first_batch)
    with torch.no_grad():
        assert torch.equal(small(x), by_hand(x))
    assert len(small.block.attention.turns) == len(here.at_size(4).pairs)
    (curve,) = [
        curve
        for layer in Results.read(run.project.report_folder / "results.json").layers
        for curve in layer.score_curves
        if curve.method == "heads"
    ]
    assert [point.size for point in curve.points] == [2, 4, 6]


@pytest.mark.parametrize("rule", [{"params": "60%"}, {"energy": "70%"}])
def test_rules_give_heads_an_even_number_of_dimensions(opened, rule):
    run = opened("evaluate.ranks=[]", sizes={**rule, "method": "heads"})
    run.accumulate()
    run.solve()
    run.compress()
    (layer,) = Compression.read(run.project.compression).layers.values()
    assert layer.size in ((4,) if "params" in rule else (2, 4, 6, 8))


def test_an_odd_number_of_dimensions_is_refused_before_anything_long(opened):
    with pytest.raises(ConfigError, match=r"dimensions of each head must be even, as pairs .* together, got 3"):
        opened(named=HEADS.replace("4", "3")).all()
