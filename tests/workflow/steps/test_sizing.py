"""Sizes by one rule for all layers, from the run file and from the command line, and what is kept of them."""

import html
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import dalr_stream as ds
from dalr_stream.cli.app import app
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, DalrStreamError
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import compress
from dalr_stream.workflow.steps.sizes.compression import Compression

DEFAULT = Method.DALR_ANCHORED_AFFINE
VALIDATION = '\n[validation]\nbatches = "tiny_run:validation"\nranks = [1, 2, 4, 6]\n'


def opened(run_file, *overrides, **sizes):
    return Run(Project(load_config(run_file, overrides, sizes), run_file.parent))


def invoke(*arguments):
    """The command line in this process; a failure on purpose is raised as it is."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def weights(run):
    """Weights of fc1 and fc2 in the saved network, counted on the modules."""
    small = ds.load(run.project.compressed, run.project.code.build)
    return sum(p.numel() for name, p in small.named_parameters() if p.dim() == 2 and name[:3] in {"fc1", "fc2"})


def lost(run, method, layer, k):
    """Share of the outputs' energy that rank k loses on the training rows, measured on the rows."""
    store = StoreView.open(run.project.store)
    factors = store.solutions(layer, [method])[method]
    moments = store.moments("target", layer)
    record = factors.at_rank(k)
    gap = factors.weight - record.up @ record.down
    constant = factors.offset - factors.weight @ factors.center - (record.bias - 0.0)
    shift = gap @ moments.mean + constant
    error = np.trace(gap @ moments.scatter @ gap.T) + moments.count * shift @ shift
    return error / np.trace(factors.weight @ moments.gram @ factors.weight.T)


def break_even(m, d):
    return m * d // (m + d)


SHAPES = {"fc1": (16, 12), "fc2": (10, 16)}


def distance(run, small, samples=128):
    """||Y - Y~||^2 / ||Y||^2 of the network's outputs on the first samples of the target, by hand."""
    rows = torch.cat([x for x, *_ in run.project.code.batches("target")])[:samples]
    with torch.no_grad():
        y, given = run.project.network(rows).double(), small(rows).double()
    return float(((y - given) ** 2).sum() / (y**2).sum())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_a_share_of_the_weights_is_kept_and_nearer_than_by_the_same_ranks(finished_file, share):
    run = opened(finished_file, params=share, method=DEFAULT.value)
    run.compress()
    assert weights(run) <= share * (16 * 12 + 10 * 16)
    small = ds.load(run.project.compressed, run.project.code.build)
    choice = Compression.read(run.project.compression).choice
    assert choice.trials[0].distance == pytest.approx(distance(run, small), rel=1e-9)
    assert [trial.distance for trial in choice.trials] == sorted(trial.distance for trial in choice.trials)
    store, plain = StoreView.open(run.project.store), {}
    for layer, (m, d) in SHAPES.items():
        rank = int(share * m * d / (m + d))
        plain[layer] = store.solutions(layer, [DEFAULT])[DEFAULT].at_rank(rank)
    assert choice.trials[0].distance <= distance(run, ds.compress(run.project.network, plain)) + 1e-12


def test_both_families_are_weighed_and_the_nearest_network_is_kept(finished_file):
    run = opened(finished_file, params="50%")
    run.compress()
    found = Compression.read(run.project.compression)
    assert {trial.plan for trial in found.choice.trials} >= {"factor pairs", "selections"}
    assert (found.choice.samples, found.choice.measured_on) == (90, "samples of 'target'")  # all that it has
    small = ds.load(run.project.compressed, run.project.code.build)
    assert found.choice.trials[0].distance == pytest.approx(distance(run, small), rel=1e-9)
    one_family = []
    for method in (DEFAULT, Method.SPECTRAL):
        alone = opened(finished_file, params="50%", method=method.value)
        alone.compress()
        one_family.append(distance(run, ds.load(alone.project.compressed, run.project.code.build)))
    assert found.choice.trials[0].distance <= min(one_family) + 1e-12
    page = opened(finished_file, params="50%").report()
    told = html.unescape(page.read_text())
    assert "networks within the budget was kept, each measured whole on 90 samples of 'target'" in told


def test_candidates_are_measured_on_samples_that_the_statistics_have_not_seen(run_file):
    text = run_file.read_text().replace('heldout = "test"', "")
    run_file.write_text(text.replace("[solve]", "[accumulate]\nheldout_share = 0.3\n[solve]"))
    run = opened(run_file, params="50%")
    run.train()
    run.accumulate()
    run.compress()
    rule = ds.HoldoutRule(0.3, 0)
    rows = torch.cat([x for x, *_ in run.project.code.batches("target")])
    held_out = torch.from_numpy(rule.mask(np.arange(len(rows))))
    choice = Compression.read(run.project.compression).choice
    assert (choice.samples, choice.measured_on) == (int(held_out.sum()), "samples held out of 'target'")
    by_hand = ds.OutputDistance(run.project.network, [rows[held_out]])
    small = ds.load(run.project.compressed, run.project.code.build)
    assert choice.trials[0].distance == pytest.approx(by_hand(small), rel=1e-6)
    assert "samples held out of 'target'" in run.size_curve(["50%"]).table().footnote


def test_validation_chooses_where_there_is_one_and_the_distance_among_equals(finished_file):
    finished_file.write_text(finished_file.read_text() + VALIDATION)
    run = opened(finished_file, params="60%", samples=40)
    run.compress()
    choice = Compression.read(run.project.compression).choice
    assert choice.samples == 40
    keys = [(-trial.score, trial.distance) for trial in choice.trials]
    assert keys == sorted(keys)
    small = ds.load(run.project.compressed, run.project.code.build)
    batches = run.project.code.loader("validation", run.project.config.validation)
    assert choice.trials[0].score == pytest.approx(sum(int((small(x).argmax(1) == y).sum()) for x, y in batches) / 60)
    first = compress.made_from(run.project)
    assert first != compress.made_from(opened(finished_file, "validation.options.samples=30", params="60%").project)


def test_a_layer_may_have_a_method_of_its_own_beside_the_rule(finished_file):
    text = finished_file.read_text()
    before, _, after = text.partition("[compress]")
    rule = '[compress]\nparams = "50%"\nfc1 = { method = "spectral" }\nfc2 = { method = "svd" }\n\n[evaluate]'
    finished_file.write_text(before + rule + after.partition("[evaluate]")[2])
    run = opened(finished_file)
    run.compress()
    found = Compression.read(run.project.compression)
    assert found.layers
    assert {(layer, size.method) for layer, size in found.layers.items()} <= {
        ("fc1", Method.SPECTRAL),
        ("fc2", Method.SVD),
    }
    assert weights(run) <= 0.5 * 352
    with pytest.raises(ConfigError, match="energy' takes one method for all layers: give it as 'method'"):
        opened(finished_file, 'compress={energy=0.9, fc1={method="svd"}}')


def test_selections_are_counted_as_narrow_as_they_leave_each_other(finished_file):
    run = opened(finished_file, "run.caveats=[]", params="50%", method="spectral")
    run.compress()
    small = ds.load(run.project.compressed, run.project.code.build)
    k, l = small.fc1.out_features, small.fc2.out_features  # noqa: E741
    assert small.fc2.in_features == k
    assert 12 * k + k * l <= 0.5 * 352
    assert 12 * (k + 1) + (k + 1) * l > 0.5 * 352 or 12 * k + k * (l + 1) > 0.5 * 352


def test_multiply_adds_are_weights_where_a_sample_is_a_row(finished_file):
    by_weights, by_macs = opened(finished_file, params=0.4), opened(finished_file, macs=0.4)
    by_weights.compress()
    first = Compression.read(by_weights.project.compression)
    by_macs.compress()
    assert Compression.read(by_macs.project.compression).layers == first.layers


@pytest.mark.parametrize("energy", [0.9, 0.99])
def test_energy_is_the_smallest_rank_that_keeps_it(finished_file, energy):
    run = opened(finished_file, energy=energy)
    run.compress()
    found = Compression.read(run.project.compression).layers
    for layer, (m, d) in SHAPES.items():
        enough = [k for k in range(1, break_even(m, d) + 1) if lost(run, DEFAULT, layer, k) <= 1 - energy]
        assert (found[layer].size if layer in found else None) == (enough[0] if enough else None)


def test_sizes_are_rounded_down_to_multiples_or_the_layer_stays(finished_file):
    run = opened(finished_file, params="60%", multiple_of=2)
    run.compress()
    assert weights(run) <= 0.6 * 352
    assert all(layer.size % 2 == 0 for layer in Compression.read(run.project.compression).layers.values())
    too_coarse = opened(finished_file, params="60%", multiple_of=8, method="svd")
    with pytest.raises(DalrStreamError, match=r"smallest sizes \(fc1 12, fc2 10\) cost 352 and the budget is 211"):
        too_coarse.compress()


def test_a_ratio_is_the_same_share_of_every_rank(finished_file):
    run = opened(finished_file, ratio="34%")
    run.compress()
    found = Compression.read(run.project.compression)
    assert {name: layer.size for name, layer in found.layers.items()} == {"fc1": 4, "fc2": 3}
    assert str(found) == "fc1 DALR anchored, affine, 4; fc2 DALR anchored, affine, 3"


def test_the_step_runs_again_when_the_rule_changes_and_the_report_names_the_sizes(finished_file):
    first = opened(finished_file, params="50%")
    page = first.report()
    before = Compression.read(first.project.compression)
    assert results(first.project).sizes[1].label == f"compressed: {before}"
    assert str(before) in page.read_text()
    again = opened(finished_file, params="50%")
    stamp = again.project.compression.stat().st_mtime_ns
    again.report()
    assert again.project.compression.stat().st_mtime_ns == stamp
    opened(finished_file, params="30%").compress()
    assert Compression.read(first.project.compression) != before
    steps = json.loads((first.project.output / "steps.json").read_text())["content"]
    assert steps["compress"]["configuration"]["compress"]["params"] == 0.3
    assert steps["compress"]["configuration"]["compress"]["method"] == "auto"


def test_the_rule_may_stand_in_the_run_file(finished_file):
    text = finished_file.read_text()
    before, _, after = text.partition("[compress]")
    rule = '[compress]\nparams = "50%"\nmethod = "svd"\n\n[evaluate]' + after.partition("[evaluate]")[2]
    finished_file.write_text(before + rule)
    run = opened(finished_file)
    run.compress()
    assert {layer.method for layer in Compression.read(run.project.compression).layers.values()} == {Method.SVD}
    other = opened(finished_file, energy="90%")
    assert (other.project.config.compress.rule, other.project.config.compress_method) == ("energy", Method.SVD)


def test_the_search_on_validation_keeps_the_drop_and_its_whole_trace(finished_file):
    finished_file.write_text(finished_file.read_text() + VALIDATION)
    done = invoke("compress", finished_file, "--max-drop", "5%")
    assert done.exit_code == 0, done.output
    run = opened(finished_file, max_drop="5%")
    found = Compression.read(run.project.compression)
    small = ds.load(run.project.compressed, run.project.code.build)
    batches = run.project.code.loader("validation", run.project.config.validation)
    right = sum(int((small(x).argmax(1) == y).sum()) for x, y in batches) / 60
    assert found.search.baseline - right <= 0.05 + 1e-9
    assert {layer: size.size for layer, size in found.layers.items()} == found.search.sizes
    last = [t for step in found.search.steps if step.kept for t in step.trials if t.layer == step.kept][-1]
    assert right == pytest.approx(last.score)
    assert last.parameters == sum(p.numel() for p in small.parameters())
    assert "search: step 1: fc1 at 6 " in done.output
    log = (run.project.output / "log.jsonl").read_text()
    assert log.count("search: step") == len(found.search.steps)
    first = run.project.compression.read_bytes()
    run.project.compression.unlink()
    opened(finished_file, max_drop="5%").compress()
    assert run.project.compression.read_bytes() == first


def test_the_search_runs_again_when_validation_changes_and_not_when_the_test_does(finished_file):
    finished_file.write_text(finished_file.read_text() + VALIDATION)

    def print_of(*overrides):
        return compress.made_from(opened(finished_file, *overrides, max_drop=0.05).project)

    assert print_of() == print_of("evaluate.ranks=[3]")
    assert print_of() != print_of("validation.options.samples=30")
    assert print_of() != print_of("validation.ranks=[2]")


@pytest.mark.parametrize(
    ("sizes", "overrides", "message"),
    [
        ({"max_drop": "1%"}, [], r"compress\.max_drop: .* add a \[validation\] section"),
        ({"max_drop": "1%"}, ['validation.batches="tiny_run:test"'], r"is the test split of \[evaluate\]"),
        ({"params": "25%", "max_drop": "1%"}, [], "one rule decides the sizes, got 'params' and 'max_drop'"),
        ({"params": "25%", "macs": "1%"}, [], "one rule decides the sizes, got 'params' and 'macs'"),
        ({"multiple_of": 8}, [], "'multiple_of' goes with a rule for all layers"),
        ({}, ["compress.params=25%"], "'params' decides all layers' sizes, and 'fc1' is given its own"),
        ({"params": "250%"}, [], r"compress\.params: must read like 25% or 0\.25, got '250%'"),
        ({"params": "0%"}, [], r"compress\.params: .* greater than 0"),
        ({"params": "a lot"}, [], r"compress\.params: .* got 'a lot'"),
        ({"params": "25%", "method": "svdd"}, [], r"compress\.method: .* got 'svdd'"),
        ({"params": "25%", "method": "svd"}, ['solve.methods=["spectral"]'], "'svd' is not in solve.methods"),
        ({}, ["compress.parms=25%"], r"unknown key 'compress\.parms'; nearest: 'params' \(a layer is a table"),
    ],
)
def test_contradicting_and_unreadable_sizes_are_one_clear_line(run_file, sizes, overrides, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(run_file, overrides, sizes)
    assert "\n" not in str(raised.value)


def test_a_budget_below_the_smallest_ranks_is_refused_with_the_figures(finished_file):
    with pytest.raises(DalrStreamError, match=r"in weights: .*\(fc1 1, fc2 1\) cost 54 and the budget is 35: raise"):
        opened(finished_file, params="10%", method="svd").compress()
    with pytest.raises(DalrStreamError, match=r"params, in weights: .*, or lower compress\.multiple_of = 2$"):
        opened(finished_file, params="20%", multiple_of=2, method="svd").compress()


def test_the_command_line_decides_for_once_and_the_run_file_stays(finished_file):
    def saved():
        facts = json.loads((finished_file.parent / "out/compressed/plan.json").read_text())
        return {key: facts[key] for key in facts if key != "provenance"}  # that has the day in it

    explicit = saved()
    assert invoke("compress", finished_file, "--params", "50%", "--multiple-of", "2").exit_code == 0
    changed = Compression.read(finished_file.parent / "out/compression.json")
    assert changed.rule == "params 50%"
    assert invoke("compress", finished_file).exit_code == 0
    assert saved() == explicit
    refused = invoke("compress", finished_file, "--params", "50%", "--macs", "50%")
    assert isinstance(refused.exception, ConfigError)


def test_solve_lists_solutions_as_json_and_nothing_else(finished_file):
    done = invoke("solve", finished_file, "--json")
    facts = json.loads(done.stdout)
    assert "up to date" in done.stderr
    run = opened(finished_file)
    assert {(fact["layer"], fact["method"]) for fact in facts} == {
        (layer, method.value)
        for layer in SHAPES
        for method in Method
        if not method.weighted and method.family is not Family.HEADS
    }
    report = {
        (layer.name, curve.method): curve for layer in results(run.project).layers for curve in layer.error_curves
    }
    for fact in facts:
        if "rank" in fact:
            curve, (m, d) = report[fact["layer"], fact["method"]], SHAPES[fact["layer"]]
            assert fact["parameters"] == fact["rank"] * (m + d)
            assert fact["of"] == m * d
            assert fact["error_training"] == pytest.approx(curve.training[fact["rank"]])
            assert fact["error_heldout"] == pytest.approx(curve.heldout[fact["rank"]])
    assert {f["rank"] for f in facts if f["layer"] == "fc1" and "rank" in f} == {1, 2, 4, break_even(16, 12)}


@pytest.mark.parametrize("method", [Method.SPECTRAL, Method.PRUNE_MEAN])
def test_the_errors_of_selections_are_measured_on_the_rows(finished_file, method):
    facts = [f for f in json.loads(invoke("solve", finished_file, "--json").stdout) if f["method"] == method.value]
    run = opened(finished_file)
    selection = StoreView.open(run.project.store).solutions("fc1", [method])[method]
    rows = np.concatenate([np.maximum(layer_one(run, x), 0.0) for x, _ in run.project.code.batches("test")])
    for fact in (f for f in facts if f["layer"] == "fc1"):
        kept = selection.at_size(fact["size"], ridge=1e-3)
        back = rows[:, kept.kept] @ kept.restore.T + kept.offset
        expected = np.linalg.norm(rows - back) / np.linalg.norm(rows)
        assert fact["error_heldout"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert fact["parameters"] == fact["size"] * (12 + 10)


def layer_one(run, inputs):
    return run.project.network.fc1(inputs).detach().double().numpy()


def test_inspect_ranks_the_layers_by_what_they_would_save(finished_file):
    done = invoke("inspect", finished_file, "--json")
    found = json.loads(done.stdout)
    run = opened(finished_file)
    assert [layer["enough"]["saved"] for layer in found] == sorted(
        (layer["enough"]["saved"] for layer in found), reverse=True
    )
    for layer in found:
        m, d = SHAPES[layer["layer"]]
        assert layer["weights"] == layer["multiply_adds"] == m * d
        assert layer["break_even"]["size"] == break_even(m, d)
        assert layer["break_even"]["saved"] == m * d - break_even(m, d) * (m + d)
        assert layer["half"]["size"] == m * d // 2 // (m + d)
        for point in (layer["half"], layer["break_even"]):
            assert 1 - point["energy"] == pytest.approx(lost(run, DEFAULT, layer["layer"], point["size"]))
            assert point["error_training"] == pytest.approx(np.sqrt(1 - point["energy"]))
            assert point["error_heldout"] >= 0
    table = invoke("inspect", finished_file).output
    assert table.index(found[0]["layer"]) < table.index(found[1]["layer"])
    nodes = json.loads(invoke("inspect", finished_file, "--json", "--method", "spectral").stdout)
    assert {layer["method"] for layer in nodes} == {"spectral"}
    assert all(layer["break_even"] is None for layer in nodes)
    assert isinstance(invoke("inspect", finished_file, "--method", "spectrall").exception, DalrStreamError)


def test_help_says_what_the_percentage_is_of():
    shown = " ".join(invoke("compress", "--help").output.split())
    assert "Fraction of the compressed layers' weights to keep, e.g. 25%; other layers do not count" in shown
