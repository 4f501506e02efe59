"""Sizes of grouped convolutions: one rank for all groups, counted, ruled and searched; and what is said of them."""

import pytest
import torch
from commands import cli
from grouped_network import GROUPED, METHOD, again, elsewhere, inputs

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, RankError, UnsupportedLayerError
from dalr_stream.network.measure.macs import watched_calls
from dalr_stream.network.surgery.compress import compress
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.results.inspect import layer_costs
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps.evaluate import Evaluation
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.sizes.sizing import sized_layer
from dalr_stream.workflow.steps.sizes.stored_menus import rows_a_sample

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose


def test_parameters_and_multiply_adds_are_those_of_the_pair(project):
    store, x = StoreView.open(project.store), inputs(project)
    solutions = {name: store.solutions(name, [METHOD])[METHOD] for name in GROUPED}
    for name, solution in solutions.items():
        shape = store.shape(name)
        assert shape.parameters == project.network.get_submodule(name).weight.numel()
        for rank in range(1, shape.max_rank):
            small = compress(project.network, {name: solution.at_rank(rank)})
            pair = small.get_submodule(name)
            assert shape.factor_parameters(rank) == sum(part.weight.numel() for part in pair)
            with watched_calls(small) as calls, torch.inference_mode():
                small(x)
            macs = (calls.macs[f"{name}.0"] + calls.macs[f"{name}.1"]) / len(x)
            weights = sized_layer(project, store, name, solution).cost(rank, shape.inputs)
            assert rows_a_sample(project, store, name) * weights == macs
            assert (rank <= shape.break_even_rank) == (shape.factor_parameters(rank) <= shape.parameters)


def test_every_tried_rank_is_one_of_all_groups(project):
    curves = {layer: found[0] for layer, found in Evaluation.read(project.evaluation).curves.items()}
    assert [point.size for point in curves["split"].points] == [1, 2, 4]
    assert [point.size for point in curves["line"].points] == [1]
    assert [point.layer_parameters for point in curves["split"].points] == [84, 168, 336]


@pytest.mark.parametrize("rule", [{"params": "45%"}, {"macs": "45%"}, {"energy": "90%"}, {"ratio": 0.5}])
def test_one_rule_for_all_layers_sizes_them_too(project, folder, tmp_path, rule):
    other = again(project, folder, tmp_path, "compress={}", **rule)
    Run(other).compress()
    layers = Compression.read(other.compression).layers
    small = ds.load(other.compressed, other.code.build)
    for name in set(layers) & set(GROUPED):
        assert small.get_submodule(f"{name}.0").out_channels == GROUPED[name] * layers[name].size
    if "params" in rule:
        weights = [sum(p.numel() for n, p in net.named_parameters() if p.ndim > 1) for net in (small, other.network)]
        left_alone = other.network.depth.weight.numel()
        assert weights[0] - left_alone <= 0.45 * (weights[1] - left_alone)
    if "ratio" in rule:
        assert layers["split"].size == 3


def test_a_search_lowers_all_groups_together(project, folder, tmp_path):
    validation = 'validation={batches="grouped_run:others", ranks=[1, 3]}'
    other = again(project, folder, tmp_path, "compress={}", 'network.layers=["split","line"]', validation, max_drop=1.0)
    Run(other).compress()
    assert {name: size.size for name, size in Compression.read(other.compression).layers.items()} == {
        "split": 1,
        "line": 1,
    }


def test_the_report_names_layers_and_what_stays_as_it_is(project):
    found = Results.read(project.report_folder / "results.json")
    assert {layer.name: layer.groups for layer in found.layers} == {"stem": 1, "fc1": 1, "fc2": 1} | GROUPED
    stays = "layer 'depth' is left out: it is a depthwise Conv2d: each of its 12 groups"
    assert [line for line in found.decisions if line.startswith(stays)]
    page = (project.report_folder / "report.html").read_text()
    assert "36 weights in 2 groups, 432 in all" in page
    assert "depthwise" in page


def test_layers_are_ranked_whole(project):
    found = {layer.layer: layer for layer in layer_costs(project, METHOD)}
    assert (found["split"].groups, found["split"].weights) == (2, 432)
    assert found["split"].multiply_adds == 432 * 16


def test_a_dry_run_names_the_convolution_and_what_stays(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    done = cli("run", folder / "run.toml", "--set", f'run.output="{tmp_path}/none"', "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "split (2 groups)" in done.stdout
    assert "@group" not in done.stdout
    assert "layer 'depth' is left out: it is a depthwise" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_depthwise_layer_that_is_named_is_an_error(folder, tmp_path):
    project = elsewhere(folder, tmp_path, 'network.layers=["stem", "depth"]')
    assert any("'depth' (it is a depthwise Conv2d" in problem for problem in dry_run(project).problems)
    run = Run(project)
    run.train()
    with pytest.raises(UnsupportedLayerError, match=r"pattern 'depth': .* each of its 12 groups is a matrix of rank 1"):
        run.accumulate()


def test_bad_sizes_name_the_layer_and_a_group_is_no_layer_to_decide(project, folder, tmp_path):
    too_large = again(project, folder, tmp_path, 'compress={split={method="svd",size=7}}')
    with pytest.raises(RankError, match=r"layer 'split@group\*': rank must lie in 1..6, got 7"):
        Run(too_large).compress()
    part = elsewhere(folder, tmp_path / "again", 'compress={"split@group0"={method="svd",size=2}}')
    with pytest.raises(ConfigError, match=r"compress\.split@group0: is not among the compressed layers stem, split"):
        Run(part).compress()
