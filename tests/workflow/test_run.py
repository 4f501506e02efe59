import json
import re
import shutil

import numpy as np
import pytest
import torch
from notes import Notes

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, FingerprintMismatchError, InvalidInputError, NonFiniteError
from dalr_stream.network.saved.weights import save_weights
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.report.records.results import Results
from dalr_stream.storage.records.moments import moments_path, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.removal import delete_activations
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project


def opened(run_file, *overrides, fresh=False):
    notes = Notes()
    return Run(Project(load_config(run_file, overrides), run_file.parent), progress=notes, fresh=fresh), notes


FEW = 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]'


@pytest.fixture
def finished(finished_file):
    return opened(finished_file)[0]


def test_a_run_ends_in_a_report_that_holds_every_method_of_every_layer(finished):
    results = Results.read(finished.project.report_folder / "results.json")
    assert [layer.name for layer in results.layers] == ["fc1", "fc2"]
    for layer in results.layers:
        assert [curve.method for curve in layer.score_curves] == [
            method.value for method in Method if not method.weighted and method.family is not Family.HEADS
        ]
        assert all(curve.heldout is not None for curve in layer.error_curves)
        assert {activity.domain for activity in layer.activity} == {"target", "source", "test"}
    assert results.baseline_score > 0.8
    assert results.caveats == ("it is tiny",)
    assert (finished.project.report_folder / "report.html").exists()


def test_a_second_run_skips_every_step_and_changes_nothing(finished, finished_file, contents):
    def made():
        return {name: data for name, data in contents(finished.project.output).items() if name != "log.jsonl"}

    before = made()
    again, notes = opened(finished_file)
    again.all()
    assert made() == before
    assert all("up to date" in note for note in notes.said)
    assert not notes.started
    assert len(notes.said) == 8  # train, three domains, solve, compress, evaluate, report


def test_the_report_shows_the_configuration_of_the_run_that_asked_for_it(finished, finished_file):
    def threads():
        return Results.read(finished.project.report_folder / "results.json").provenance["configuration"]["accumulate"][
            "threads"
        ]

    assert threads() is None
    changed, notes = opened(finished_file, "accumulate.threads=1")
    changed.all()
    assert threads() == 1
    assert "evaluate: up to date, skipped" in notes.said
    opened(finished_file)[0].all()
    assert threads() is None


def test_moments_alone_are_enough_to_solve_again(finished, finished_file):
    delete_activations(finished.project.store)
    changed, notes = opened(finished_file, FEW, "solve.ridge=0.1", "evaluate.ranks=[1,3]")
    changed.all()
    assert not any("capture" in told for told in notes.said + notes.started)
    assert not (finished.project.store / "activations").exists()
    solution = StoreView.open(finished.project.store).solutions("fc1", [Method.DALR_ANCHORED_AFFINE])
    solution = solution[Method.DALR_ANCHORED_AFFINE]
    scatter = accumulate_stored(finished.project.store, domain="target", folding=ds.Folding(ds.HoldoutRule(0.0)))[
        "fc1"
    ].scatter
    assert solution.diagnostics.ridge == pytest.approx(0.1 * np.trace(scatter) / 12)


def test_a_step_runs_again_when_its_settings_or_the_code_change(finished_file):
    _, notes = opened(finished_file)
    changed, notes = opened(finished_file, "evaluate.ranks=[2]")
    changed.all()
    assert notes.started == ["evaluate"]
    module = finished_file.parent / "tiny_run.py"
    module.write_text(module.read_text() + "\n# a comment\n")
    edited, notes = opened(finished_file, FEW)
    edited.all()
    assert "trained for 60 steps" in notes.said


def test_the_report_shows_the_errors_and_accuracies_measured_on_the_rows(finished):
    results = Results.read(finished.project.report_folder / "results.json")
    layer = results.layers[0]
    inputs = torch.cat([batch[0] for batch in finished.project.code.batches("test")])
    rows = inputs.double().numpy()
    solution = StoreView.open(finished.project.store).solutions("fc1", [Method.DALR_OPTIMAL_AFFINE])[
        Method.DALR_OPTIMAL_AFFINE
    ]
    assert isinstance(solution, LowRankFactors)
    weight, bias = (array.astype(float) for array in ds.network.weights_of(finished.project.network, "fc1"))
    record = solution.at_rank(4)
    error = rows @ weight.T + bias - (rows @ record.down.T @ record.up.T + record.bias)
    curve = next(curve for curve in layer.error_curves if curve.method == "dalr_optimal_affine")
    assert curve.heldout[4] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(rows @ weight.T), rel=1e-10)

    small = ds.compress(finished.project.network, {"fc1": record})
    labels = torch.cat([batch[1] for batch in finished.project.code.batches("test")])
    accuracy = float((small(inputs).argmax(1) == labels).float().mean())
    accuracies = next(curve for curve in layer.score_curves if curve.method == "dalr_optimal_affine")
    assert next(point for point in accuracies.points if point.size == 4).score == pytest.approx(accuracy)


def test_the_saved_network_loads_and_gives_what_was_evaluated(finished):
    build = finished.project.code.build
    small = ds.load(finished.project.compressed, build)
    evaluation = json.loads(finished.project.evaluation.read_text())["content"]["content"]
    inputs, labels = finished.project.code.batches("test")[0]
    accuracy = float((small(inputs).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(evaluation["sizes"][1]["score"])
    assert small.fc1[0].weight.shape == (4, 12)
    assert small.fc2.weight.shape == (6, 16)
    assert small.fc3.weight.shape == (3, 6)


def test_direct_capture_keeps_no_activations_and_gives_the_same_moments(finished, finished_file):
    direct, _ = opened(finished_file, FEW, "capture.keep_activations=false", 'run.output="direct"')
    direct.all()
    assert not (direct.project.store / "activations").exists()
    for domain in ("target", "source"):
        for layer in ("fc1", "fc2", "fc3"):
            stored = StoreView.open(finished.project.store).moments(domain, layer)
            assert StoreView.open(direct.project.store).moments(domain, layer).same_bits(stored)


def test_a_held_out_share_is_used_where_no_domain_is_named(run_file):
    text = run_file.read_text().replace('heldout = "test"', "")
    run_file.write_text(text)
    run, _ = opened(run_file, "accumulate.heldout_share=0.2")
    run.train()
    run.accumulate()
    store = StoreView.open(run.project.store)
    apart = store.heldout("target", None, "fc1")
    assert 0 < apart.count < 45
    assert store.moments("target", "fc1").count + apart.count == 90
    assert store.all_rows("source", "fc1").count == store.moments("source", "fc1").count == 120


def test_another_network_is_refused_and_replaced_only_when_asked(finished, finished_file, contents):
    before = contents(finished.project.store)
    other, _ = opened(finished_file, FEW, "network.train_options.steps=2")
    with pytest.raises(FingerprintMismatchError, match="--fresh"):
        other.all()
    assert contents(finished.project.store) == before
    replaced, notes = opened(finished_file, FEW, "network.train_options.steps=2", fresh=True)
    replaced.all()
    assert any("replacing" in note for note in notes.said)


def test_solutions_for_another_network_are_neither_put_in_nor_evaluated(finished, finished_file):
    weights = finished.project.weights
    model = finished.project.code.build()
    save_weights(model, weights)
    other, _ = opened(finished_file, "compress.fc1.size=3")
    with pytest.raises(FingerprintMismatchError, match="was made from the network with fingerprint"):
        other.compress()
    again, _ = opened(finished_file, "evaluate.ranks=[3]")
    with pytest.raises(FingerprintMismatchError, match="was made from the network with fingerprint"):
        again.evaluate()


def test_two_parts_of_moments_from_other_rows_are_refused(finished):
    root = finished.project.store
    path = moments_path(root, "target", "fc1", "heldout")
    save_moments(path, ds.Moments.empty(12), {**provenance_of(path), "rows": "others"})
    with pytest.raises(FingerprintMismatchError, match="accumulate again"):
        StoreView.open(root).all_rows("target", "fc1")


def test_other_data_are_refused_and_replaced_only_when_asked(finished, finished_file, contents):
    before = contents(finished.project.store)
    other, _ = opened(finished_file, FEW, "domains.target.options.samples=95")
    with pytest.raises(FingerprintMismatchError, match=r"domain 'target'.*--fresh"):
        other.all()
    assert contents(finished.project.store) == before
    replaced, _ = opened(finished_file, FEW, "domains.target.options.samples=95", fresh=True)
    replaced.all()
    assert StoreView.open(replaced.project.store).moments("target", "fc1").count == 95


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (['domains.target.batches="tiny_run:with_nan"'], NonFiniteError, r"layer 'fc1', batch 1.*1 NaN.*feature 4"),
        (
            ['domains.target.batches="tiny_run:empty"'],
            InvalidInputError,
            r"domains\.target\.batches: the loader is empty",
        ),
        (['network.layers=["fcc1"]'], InvalidInputError, "pattern 'fcc1' matches no layer; nearest: fc1"),
        (
            ["compress.fc1.size=13"],
            InvalidInputError,
            r"fc1\.size: the layer's rank must lie in 1\.\.12, got 13",
        ),
        (['compress.fc9.method="svd"', "compress.fc9.size=1"], ConfigError, "compress.fc9.*fc1, fc2"),
        (['network.build="tiny_run:nothing"'], ConfigError, "network.build.*no function 'nothing'"),
        (['domains.source.batches="absent_module:f"'], ConfigError, "no module 'absent_module'"),
    ],
)
def test_bad_input_is_named(run_file, overrides, error, message):
    run, _ = opened(run_file, FEW, *overrides)
    with pytest.raises(error, match=message):
        run.all()


def test_a_rank_above_break_even_is_a_decision_in_the_report(run_file):
    run, notes = opened(run_file, FEW, "compress.fc1.size=10")
    run.all()
    warning = "layer 'fc1': rank 10 needs 280 parameters where the layer has 192"
    assert any(warning in note for note in notes.said)
    assert any(warning in decision for decision in results(run.project).decisions)


def test_a_metric_of_ones_own_is_used(run_file):
    metric = ('evaluate.metric="tiny_run:share_of_first"', "evaluate.higher=true")
    run, _ = opened(run_file, *metric, 'solve.methods=["svd"]', "compress={}")
    run.all()
    inputs, _ = run.project.code.batches("test")[0]
    share = float((run.project.network(inputs).argmax(1) == 0).float().mean())
    assert results(run.project).baseline_score == pytest.approx(share)
    assert results(run.project).metric == "share of first"


PERPLEXITY = ('evaluate.metric="tiny_run:perplexity"', "evaluate.higher=false", "evaluate.range=[1, inf]")


def test_a_metric_of_which_less_is_better_goes_by_its_own_name_and_direction(run_file):
    run, _ = opened(run_file, *PERPLEXITY, 'solve.methods=["svd"]', "compress={}", "evaluate.drop=0.5")
    run.all()
    found = results(run.project)
    layer = found.layers[0]
    (row,), points = layer.headline, layer.score_curves[0].points
    assert found.baseline_score >= 1.0
    good = [point for point in points if point.score <= 1.5 * found.baseline_score]
    assert row.size == min((point.size for point in good), default=None)
    page = next(run.project.output.glob("report/*.html")).read_text()
    assert "Uncompressed perplexity: " in page
    words = re.sub(r"<style>.*?</style>|<[^>]*>", "", page, flags=re.DOTALL)
    assert "accuracy" not in words.lower()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            PERPLEXITY[:1],
            r"evaluate.*: higher must be stated for a metric of your own: true where more of",
        ),
        (("evaluate.higher=false",), "evaluate.*: higher and range belong to a metric of your own; accuracy lies"),
        ((*PERPLEXITY[:2], "evaluate.range=[2, 1]"), r"evaluate\.range: must be two numbers, the lower one first, got"),
        (
            (*PERPLEXITY[:2], "evaluate.range=3"),
            r"evaluate\.range: must be two numbers, such as \[1, inf\] for a",
        ),
    ],
)
def test_what_a_metric_of_ones_own_must_say(run_file, settings, message):
    with pytest.raises(ConfigError, match=message):
        opened(run_file, *settings)


def test_a_value_outside_the_metrics_range_is_refused(run_file):
    run, _ = opened(run_file, *PERPLEXITY[:2], 'solve.methods=["svd"]', "compress={}")
    with pytest.raises(
        InvalidInputError, match=r"evaluate.metric: 'tiny_run:perplexity' gave .*, which must be 0\.\.1"
    ):
        run.all()


def test_fewer_samples_than_features_is_a_recorded_decision(run_file):
    run, notes = opened(
        run_file, 'solve.methods=["dalr_optimal","dalr_published"]', "compress={}", "domains.target.options.samples=8"
    )
    run.all()
    few = [note for note in notes.said if "8 rows for 12 features" in note]
    assert [note.partition(": 8")[0] for note in few] == ["warning: layer 'fc1'"]
    assert any("8 rows for 12 features" in decision for decision in results(run.project).decisions)


def test_a_memory_limit_refuses_before_anything_is_written(run_file):
    run, _ = opened(run_file, 'accumulate.memory_limit="1KiB"')
    with pytest.raises(ds.DalrStreamError, match="the limit is 0 MiB"):
        run.all()
    assert not run.project.store.exists()


def test_a_damaged_store_is_named_by_the_run(finished, finished_file):
    chunk = next((finished.project.store / "activations" / "target" / "fc1" / "c").rglob("0/0"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    shutil.rmtree(finished.project.store / "moments")
    again, _ = opened(finished_file)
    with pytest.raises(ds.DalrStreamError, match=r"tile 0 of layer 'fc1' on 'target' is damaged"):
        again.all()
