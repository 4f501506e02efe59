"""Heads in a run file: found, solved from the store, saved as any other network, weighed, evaluated and reported."""

import sys

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import ConfigError
from dalr_stream.network.surgery.plan import NarrowHeads
from dalr_stream.numerics import head_factors
from dalr_stream.numerics.methods import Method
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.results.inspect import layer_costs, solution_facts
from dalr_stream.workflow.results.tables import layer_facts
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.sequential import folding_of
from dalr_stream.workflow.steps.sizes.compression import Compression

CODE = """
import torch
from torch import nn
from attentions import FixedScale, Rotary, block


class Classifier(nn.Module):
    def __init__(self, kind, groups):
        super().__init__()
        self.block, self.classes = block(kind, groups=groups), nn.Linear(12, 3)

    def forward(self, x):
        return self.classes(self.block(x).mean(1))


def build(groups=2, rotary=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(Rotary if rotary else FixedScale, groups)


def batches(*, seed, samples=90):
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(samples, 7, 12, generator=generator)
    with torch.no_grad():
        labels = build()(inputs).argmax(1)
    return [(inputs[i : i + 30], labels[i : i + 30]) for i in range(0, samples, 30)]


def test(*, seed):
    return batches(seed=seed + 1)


def validation(*, seed):
    return batches(seed=seed + 2)
"""
RUN_FILE = """
[run]
name = "heads"
output = "out"

[network]
build = "attention_run:build"
layers = ["block.*"]

[domains.target]
batches = "attention_run:batches"

[solve]
methods = ["svd", "dalr_anchored_affine", "spectral", "heads"]

[evaluate]
batches = "attention_run:test"
ranks = [1, 2, 3]
"""
OUTPUT = "block.attention.o"
LAYERS = ("block.attention.q", "block.attention.k", "block.attention.v", OUTPUT)
BESIDE = 'compress={"*.o" = { method = "heads", size = 2 }, "*.q" = { method = "svd", size = 2 }}'
GRADIENTS = (
    'network.gradients=["block.*"]',
    'solve.methods=["dalr_anchored_affine", "dalr_weighted_affine", "heads", "heads_weighted"]',
)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "attention_run", raising=False)
    (tmp_path / "attention_run.py").write_text(CODE)
    (tmp_path / "run.toml").write_text(RUN_FILE)

    def make(*overrides, sizes=None):
        return Run(Project(load_config(tmp_path / "run.toml", overrides, sizes), tmp_path))

    return make


def named(size=2, layer=OUTPUT, method="heads"):
    return f'compress={{"{layer}" = {{ method = "{method}", size = {size} }}}}'


def outputs(network):
    with torch.no_grad():
        return network(2 * torch.randn(20, 7, 12, generator=torch.Generator().manual_seed(9)))


def solve(run):
    run.accumulate()
    run.solve()


def compress(run):
    solve(run)
    run.compress()


def saved(run):
    return ds.load(run.project.compressed, run.project.code.placed)


def test_a_network_with_narrower_heads_is_saved_as_any_other(opened):
    run = opened(named(2), 'finetune={batches="attention_run:validation", epochs=1}')
    run.all()
    store, layout = StoreView.open(run.project.store), ds.numerics.HeadLayout(*LAYERS, heads=4, groups=2, size=4)
    assert store.heads == {OUTPUT: layout}
    small = saved(run)
    assert [type(step) for step in small.compression_plan.steps] == [NarrowHeads]
    assert small.block.attention.head_dim == 2
    heads = head_factors(store.attention(OUTPUT, "target"), layout).at_size(2)
    by_hand = ds.compress(run.project.network, {OUTPUT: heads}, example=run.project.code.first_batch)
    assert torch.equal(outputs(small), outputs(by_hand))
    assert str(Compression.read(run.project.compression)) == "narrower heads in 1 of 6 layers, 2"
    assert ds.load(run.project.finetuned, run.project.code.placed).block.attention.head_dim == 2


def test_what_is_read_back_is_what_was_solved_bit_for_bit(opened):
    run = opened()
    solve(run)
    store = StoreView.open(run.project.store)
    here = head_factors(store.attention(OUTPUT, "target"), store.heads[OUTPUT])
    there = store.solutions(OUTPUT, [Method.HEADS])[Method.HEADS]
    assert (there.layout, there.ridge, there.method, there.diagnostics) == (
        here.layout, here.ridge, here.method, here.diagnostics,
    )  # fmt: skip
    for size in (1, 2, 3, 4):
        one, other = here.at_size(size), there.at_size(size)
        assert (one.score_loss, one.output_loss) == (other.score_loss, other.output_loss)
        for array in ("queries", "keys", "values", "restore", "offset"):
            assert np.array_equal(getattr(one, array), getattr(other, array))
    verify_store(run.project.store).require()
    (path,) = store.solution_paths(OUTPUT, Method.HEADS)
    chunk = next(file for file in (path / "mean").rglob("*") if file.is_file() and file.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    assert any("heads" in finding.part for finding in verify_store(run.project.store).findings)


def test_the_report_has_their_scores_beside_those_of_other_methods(opened):
    run = opened(named(2))
    run.all()
    results = Results.read(run.project.report_folder / "results.json")
    by_name = {layer.name: {curve.method: curve for curve in layer.score_curves} for layer in results.layers}
    assert {name for name, curves in by_name.items() if "heads" in curves} == {OUTPUT}
    points = by_name[OUTPUT]["heads"].points
    assert [(point.size, point.layer_parameters) for point in points] == [(1, 48), (2, 96), (3, 144)]
    score = ds.network.accuracy(saved(run), run.project.code.loader("evaluate", run.project.evaluate_section))
    assert points[1].score == score
    page = (run.project.report_folder / "report.html").read_text()
    assert "narrower heads" in page
    assert "Heads stand by what they leave of this layer" in page


def test_a_budget_weighs_heads_beside_factors_and_selections(opened):
    run = opened(sizes={"params": "50%", "samples": 30})
    run.all()
    choice = Compression.read(run.project.compression).choice
    plans = {trial.plan for trial in choice.trials}
    assert {"factor pairs", "heads", "selections"} <= plans
    names, whole, small = run.project.layers, run.project.network, saved(run)
    before, after = (
        sum(p.numel() for name in names for p in net.get_submodule(name).parameters() if p.dim() == 2)
        for net in (whole, small)
    )
    assert after <= 0.5 * before


def test_heads_alone_by_name_and_by_every_rule(opened):
    layers = 'network.layers=["block.attention.*"]'
    for rule in ({"params": "50%"}, {"macs": "50%"}, {"ratio": "50%"}, {"energy": "70%"}, {"network": "80%"}):
        run = opened(layers, "evaluate.ranks=[]", sizes={**rule, "method": "heads"})
        compress(run)
        record = Compression.read(run.project.compression)
        (size,) = [layer.size for layer in record.layers.values()]
        assert [layer.method for layer in record.layers.values()] == [Method.HEADS]
        heads = StoreView.open(run.project.store).solutions(OUTPUT, [Method.HEADS])[Method.HEADS]
        if "energy" in rule:
            assert next(one for one in range(1, 5) if heads.at_size(one).loss <= 0.3) == size
        elif "network" not in rule:
            assert size == 2


def test_the_loss_of_score_is_kept(opened):
    run = opened(
        'network.layers=["block.attention.*"]', 'validation.batches="attention_run:validation"',
        sizes={"max_drop": "30%", "method": "heads"},
    )  # fmt: skip
    compress(run)
    record = Compression.read(run.project.compression)
    assert record.search is not None
    assert {layer.method for layer in record.layers.values()} <= {Method.HEADS}


@pytest.mark.parametrize("rule", [{"energy": "90%"}, {"params": "60%", "samples": 30}, {"max_drop": "20%"}])
def test_what_the_loss_feels_weighs_heads_in_nats(opened, rule):
    run = opened(*GRADIENTS, 'validation.batches="attention_run:validation"', sizes=rule)
    compress(run)
    record = Compression.read(run.project.compression)
    assert "what the loss feels" in record.rule or record.choice is not None
    store = StoreView.open(run.project.store)
    assert store.solutions(OUTPUT, [Method.HEADS_WEIGHTED])[Method.HEADS_WEIGHTED].method is Method.HEADS_WEIGHTED


def test_the_table_of_layers_says_which_are_attentions(opened):
    project = opened().project
    facts = {fact["layer"]: fact for fact in layer_facts(project, project.stand_in())}
    assert (facts[OUTPUT]["heads"], facts[OUTPUT]["head_size"]) == (4, 4)
    assert all("heads" not in fact for layer, fact in facts.items() if layer != OUTPUT)


def test_what_was_solved_is_listed(opened):
    run = opened()
    solve(run)
    facts = [fact for fact in solution_facts(run.project) if fact["method"] == "heads"]
    whole = 16 * 12 + 8 * 12 + 8 * 12 + 12 * 16
    assert [(fact["layer"], fact["size"], fact["parameters"], fact["of"]) for fact in facts] == [
        (OUTPUT, size, whole * size // 4, whole) for size in (1, 2, 3)
    ]
    assert all(fact["error_heldout"] > 0 for fact in facts)
    with pytest.raises(ConfigError, match=r"compress\.block\.up: 'heads' was not solved: layer 'block\.up': the heads"):
        layer_costs(run.project, "heads")
    only = opened('network.layers=["block.attention.*"]', 'run.output="only"')
    solve(only)
    (cost,) = layer_costs(only.project, "heads")
    assert (cost.layer, cost.half.size, cost.break_even) == (OUTPUT, 2, None)


@pytest.mark.parametrize(
    ("overrides", "sizes", "reason"),
    [
        ([named(2, "block.attention.q")], None, "'heads' was not solved: .* heads go by the name of that layer"),
        ([named(2, "block.up")], None, "'heads' was not solved: layer 'block.up': the heads of its attention cannot"),
        ([named(5)], None, r"number of dimensions of each head must lie in 1\.\.4, got 5"),
        ([named(2), "network.options={rotary=true}"], None, "'heads' was not solved: .* enter through their inner"),
        (['network.layers=["*.attention.*"]'], {"singular_values": "90%", "method": "heads"}, "which has none"),
        (['compress={"block.attention.o" = { method = "heads", retention = 0.9 }}'], None, "'heads' narrows heads"),
        (['solve.methods=["heads_weighted"]'], None, "needs the gradients of the layers"),
        ([BESIDE], None, "it gets narrower with the heads of 'block.attention.o'"),
    ],
)  # fmt: skip
def test_what_heads_cannot_do_is_refused_before_anything_long(opened, overrides, sizes, reason):
    with pytest.raises(ConfigError, match=reason):
        opened('network.layers=["block.*"]', *overrides, sizes=sizes).all()


@pytest.mark.parametrize("sizes", [{"params": "60%", "samples": 30}, {"energy": "70%", "method": "heads"}])
def test_in_turn_heads_are_weighed_and_solved_as_well(opened, sizes):
    attention = 'network.layers=["*.attention.*"]'
    run = opened(attention, *GRADIENTS, sizes={**sizes, "order": "sequential"})
    compress(run)
    record = Compression.read(run.project.compression)
    if "params" in sizes:
        assert any("heads" in trial.plan for trial in record.choice.trials)
        assert any("heads" in trial.plan for trial in record.choice.at_once)
        assert any("heads, weighted by gradients" in trial.plan for trial in record.choice.trials)
    else:
        assert [layer.method for layer in record.layers.values()] == [Method.HEADS]
    assert saved(run).block.attention.o.in_features <= 16


@pytest.mark.parametrize("method", ["heads", "heads_weighted"])
def test_in_turn_heads_that_are_named_are_those_of_compress_sequentially(opened, method):
    gradients = GRADIENTS if method == "heads_weighted" else ()
    run = opened(*gradients, named(2, method=method), 'compress.order="sequential"', 'compress.target="stream"')
    run.all()
    small, batches = saved(run), run.project.code.batches("target")
    attention = StoreView.open(run.project.store).statistics("target") if gradients else None
    choice = {OUTPUT: ds.LayerChoice(method, 2, attention=attention)}
    folding = folding_of(run.project)
    twin = ds.compress_sequentially(run.project.network, batches, choice, target="stream", folding=folding)
    assert torch.equal(outputs(small), outputs(twin.network))
    assert Compression.read(run.project.compression).gain.passes == ((OUTPUT,),)
    assert not run.project.sequence.exists()
