"""Compression layer after layer from a run file: sizes as before, factors in sequence, resumed, skipped, reported."""

import json
import shutil

import pytest
import torch
from notes import Notes
from typer.testing import CliRunner

import dalr_stream as ds
from dalr_stream.cli.app import app
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import compress
from dalr_stream.workflow.steps import sequential as sequence_step
from dalr_stream.workflow.steps.sizes.budget import networks_in_words, turned_at_most
from dalr_stream.workflow.steps.sizes.compression import Compression

IN_SEQUENCE = 'compress.order="sequential"'
TWO_PAIRS = ['compress.fc2.method="dalr_anchored_affine"', "compress.fc2.size=3"]


def opened(run_file, *overrides, **sizes):
    said = Notes()
    return Run(Project(load_config(run_file, overrides, sizes), run_file.parent), progress=said), said.said


def saved(run):
    return ds.load(run.project.compressed, run.project.code.build).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_network_in_sequence_is_the_python_apis(finished_file):
    parallel = saved(opened(finished_file)[0])
    run, said = opened(finished_file, IN_SEQUENCE)
    run.compress()
    project, section = run.project, run.project.config.solve
    restore = {"restore_ridge": section.restore_ridge}
    choices = {
        "fc1": ds.LayerChoice("dalr_anchored_affine", 4, ds.Ridge.relative(1e-3)),
        "fc2": ds.LayerChoice("momasp_node", 6, **restore),
    }
    found = ds.compress_sequentially(
        project.network,
        project.code.batches("target"),
        choices,
        source=project.code.batches("source"),
        folding=ds.Folding(ds.HoldoutRule(0.0)),
    )
    assert same(saved(run), found.network.state_dict())
    assert same({k: v for k, v in parallel.items() if k.startswith("fc1")}, saved_part(run, "fc1"))
    assert not same(parallel, saved(run))
    assert "layer after layer: 2 passes over the data: fc1; fc2" in said
    assert not project.sequence.exists()


def saved_part(run, layer):
    return {name: tensor for name, tensor in saved(run).items() if name.startswith(layer)}


def test_the_gain_is_measured_on_rows_that_decide_nothing_and_reported(finished_file):
    parallel = ds.load(opened(finished_file)[0].project.compressed, opened(finished_file)[0].project.code.build)
    run, said = opened(finished_file, IN_SEQUENCE)
    page = run.all().parent
    record = Compression.read(run.project.compression)
    project = run.project
    small, test = ds.load(project.compressed, project.code.build), project.code.batches("test")
    before, after = (ds.output_errors(project.network, net, test, ["fc1", "fc3"]) for net in (parallel, small))
    assert [(g.layer, g.parallel, g.sequential) for g in record.gain.layers] == [
        (name, before[name], after[name]) for name in ("fc1", "fc3")
    ]
    line = (
        "layers were compressed one after the other, in 2 passes over the data: fc1; fc2; relative output error on "
        f"samples of 'test', all at once -> one after the other: fc1 {before['fc1']:.4f} -> {after['fc1']:.4f}, fc3 "
        f"{before['fc3']:.4f} -> {after['fc3']:.4f}"
    )
    assert f"compress: {line}" in said
    found = results(project)
    assert line in found.decisions
    assert found.sizes[1].label.endswith("MoMaSP (node), 6 (one after the other)")
    assert "one after the other" in (page / "report.html").read_text()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_without_a_domain_for_it_the_held_out_share_measures_where_there_is_one(run_file, share):
    text = (
        run_file.read_text()
        .replace('heldout = "test"', "")
        .replace("[solve]", f"[accumulate]\nheldout_share = {share}\n[solve]")
    )
    run_file.write_text(text)
    run, _ = opened(run_file, IN_SEQUENCE, *TWO_PAIRS, 'solve.methods=["dalr_anchored_affine"]')
    run.train()
    run.accumulate()
    run.compress()
    gain = Compression.read(run.project.compression).gain
    assert gain.measured_on == f"samples {'held out of' if share else 'of'} 'target'"
    rule = ds.HoldoutRule(share, 0) if share else None
    small = ds.load(run.project.compressed, run.project.code.build)
    measured = ds.output_errors(
        run.project.network, small, run.project.code.batches("target"), ["fc1", "fc2"], holdout=rule
    )
    assert {layer.layer: layer.sequential for layer in gain.layers} == measured


def test_it_is_skipped_while_fresh_and_the_order_is_part_of_what_it_is_made_from(finished_file):
    run, said = opened(finished_file, IN_SEQUENCE)
    run.compress()
    assert "compress: up to date, skipped" not in said
    again, said = opened(finished_file, IN_SEQUENCE)
    again.compress()
    assert said[-1] == "compress: up to date, skipped"
    back, said = opened(finished_file)
    back.compress()
    assert Compression.read(back.project.compression).gain is None
    assert not any("pass" in line for line in said)


def test_other_data_makes_it_stale(finished_file):
    parallel, sequential = (opened(finished_file, *order)[0].project for order in ([], [IN_SEQUENCE]))
    before = compress.made_from(parallel), compress.made_from(sequential)
    module = finished_file.parent / "tiny_run.py"
    module.write_text(module.read_text() + "\n# changed\n")
    assert compress.made_from(sequential) != before[1]
    assert compress.made_from(parallel) == before[0]


def test_killed_between_passes_it_goes_on_from_the_last_finished_one(finished_file, monkeypatch):
    keep = sequence_step._keep

    def kept_and_killed(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    expected, _ = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS)
    expected.compress()
    weights, errors = saved(expected), Compression.read(expected.project.compression)
    opened(finished_file)[0].compress()
    monkeypatch.setattr(sequence_step, "_keep", kept_and_killed)
    run, _ = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS)
    with pytest.raises(KeyboardInterrupt):
        run.compress()
    assert run.project.sequence.exists()
    assert Compression.read(run.project.compression).gain is None
    monkeypatch.undo()
    run, said = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS)
    run.compress()
    assert "compress: resuming after fc1" in said
    assert "layer after layer: 1 pass over the data: fc2" in said
    assert same(saved(run), weights)
    assert Compression.read(run.project.compression) == errors
    assert not run.project.sequence.exists()


def test_what_another_setting_left_behind_is_not_gone_on_with(finished_file, monkeypatch):
    keep = sequence_step._keep

    def kept_and_killed(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(sequence_step, "_keep", kept_and_killed)
    with pytest.raises(KeyboardInterrupt):
        opened(finished_file, IN_SEQUENCE, *TWO_PAIRS)[0].compress()
    monkeypatch.undo()
    run, said = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS[:1], "compress.fc2.size=2")
    run.compress()
    assert not any("going on" in line for line in said)


def test_a_budget_is_chosen_among_networks_that_were_compressed_in_turn(finished_file):
    run, said = opened(finished_file, IN_SEQUENCE, params="50%")
    assert run.project.config.compress.order == "sequential"
    run.compress()
    found = Compression.read(run.project.compression)
    assert [layer.layer for layer in found.gain.layers] == list(found.layers)
    assert json.loads(run.project.compression.read_text())["content"]["content"]["gain"]["passes"] == [["fc1"], ["fc2"]]
    turned = "and 10 of them once more with one layer compressed after the other"
    assert any(turned in line for line in said)
    assert turned in networks_in_words(run.project, StoreView.open(run.project.store))
    distance = ds.OutputDistance(run.project.network, run.project.code.batches("target"))
    assert distance(ds.load(run.project.compressed, run.project.code.build)) == found.choice.trials[0].distance
    assert "compressed layer after layer and measured whole" in str(found.choice)
    parallel, _ = opened(finished_file, params="50%")
    parallel.compress()
    at_once = Compression.read(parallel.project.compression)
    assert turned_at_most(parallel.project, StoreView.open(parallel.project.store)) == 0
    assert at_once.choice.trials == found.choice.at_once
    assert at_once.choice.at_once == ()
    ways = [(trial.plan, trial.rule) for trial in found.choice.trials]
    assert {rule for _, rule in ways} == {trial.rule for trial in at_once.choice.trials}


def test_a_rule_that_measures_nothing_decides_as_it_does_at_once(finished_file):
    found = {}
    for order in ((), (IN_SEQUENCE,)):
        run, _ = opened(finished_file, *order, energy="90%")
        run.compress()
        found[order] = Compression.read(run.project.compression)
    assert found[()].layers == found[IN_SEQUENCE,].layers
    assert found[()].gain is None


def test_a_ridge_that_rows_chose_serves_again(finished_file):
    run, _ = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS, 'solve.ridge="heldout"')
    run.compress()
    method = ds.Method.DALR_ANCHORED_AFFINE
    store = StoreView.open(run.project.store)
    ridges = {layer: store.solutions(layer, [method])[method].diagnostics.chosen_ridge for layer in ("fc1", "fc2")}
    choices = {
        layer: ds.LayerChoice(method, size, ds.Ridge.relative(ridges[layer]))
        for layer, size in (("fc1", 4), ("fc2", 3))
    }
    found = ds.compress_sequentially(
        run.project.network, run.project.code.batches("target"), choices, folding=ds.Folding(ds.HoldoutRule(0.0))
    )
    assert same(saved(run), found.network.state_dict())


def test_shards_do_not_stand_in_the_way(run_file):
    run, _ = opened(run_file, IN_SEQUENCE, *TWO_PAIRS, "accumulate.shards=3", 'solve.methods=["dalr_anchored_affine"]')
    run.train()
    run.accumulate()
    run.compress()
    assert Compression.read(run.project.compression).gain is not None


def test_where_a_rule_leaves_every_layer_as_it_is_no_pass_is_made(finished_file):
    run, said = opened(finished_file, IN_SEQUENCE, params="100%")
    run.compress()
    assert not any("pass" in line for line in said)
    assert str(Compression.read(run.project.compression)) == "as is"


def test_another_order_is_refused(run_file):
    with pytest.raises(ConfigError, match=r"compress\.order.*'parallel' or 'sequential'"):
        load_config(run_file, ['compress.order="backwards"'])


def test_another_size_or_method_of_the_last_layer_costs_no_pass(finished_file):
    first, _ = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS)
    first.compress()
    assert len(first.project.stores) == 2  # the first pass takes its moments from the run's own store
    for change in ("compress.fc2.size=4", 'compress.fc2.method="dalr_published"'):
        run, said = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS, change)
        run.compress()
        kept = [line for line in said if "kept from an earlier pass" in line]
        assert len(kept) == 1
        assert f"moments of 'fc1' are those of '{run.project.store}': no pass is needed" in said
        again, said = opened(finished_file, IN_SEQUENCE, *TWO_PAIRS, change)
        again.project.pass_moments.rename(again.project.pass_moments.with_name("elsewhere"))
        (again.project.compression).unlink()
        again.compress()
        assert not any("kept from an earlier pass" in line for line in said)
        assert same(saved(run), saved(again))
        for path in again.project.output.glob("elsewhere"):
            shutil.rmtree(path)


def test_fresh_makes_every_pass_again_and_verify_reads_what_passes_keep(finished_file):
    opened(finished_file, IN_SEQUENCE, *TWO_PAIRS)[0].compress()
    said = Notes()
    project = Project(load_config(finished_file, [IN_SEQUENCE, *TWO_PAIRS], {}), finished_file.parent)
    project.compression.unlink()
    Run(project, progress=said, fresh=True).compress()
    assert not any("kept from an earlier pass" in line for line in said.said)
    store = project.stores[1]
    (record,) = (store / "moments" / "target").iterdir()
    (record / "training" / "mean" / "zarr.json").write_text("{")
    result = CliRunner().invoke(app, ["verify", str(finished_file), "--set", IN_SEQUENCE])
    assert result.exit_code != 0
    assert f"WRONG passes/{store.name}/moments/target/{record.name}/training" in result.output
