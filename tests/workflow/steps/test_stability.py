"""A run that keeps shards says whether its calibration set is large enough, and may choose its ridge by them."""

import json

import pytest

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import ConfigError, InvalidInputError
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.resampling.jackknife import jackknife_low_rank
from dalr_stream.numerics.resampling.ridge_choice import GRID, choose_ridge
from dalr_stream.report.records.results import Results
from dalr_stream.storage.records.solutions import load_solution
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.solving.stability import read_stability

FEW = "solve.methods=['svd', 'dalr_anchored_affine', 'dalr_optimal_affine', 'momasp_node']"


def opened(run_file, *overrides):
    return Run(Project(load_config(run_file, [FEW, *overrides]), run_file.parent))


def test_a_run_with_shards_answers_in_its_report(run_file):
    run = opened(run_file, "accumulate.shards=4")
    page = run.all().read_text()
    project = run.project
    assert verify_store(project.store).findings == ()
    found = read_stability(project.stability)
    assert list(found) == ["fc1", "fc2"]
    store = StoreView.open(project.store)
    for layer, stability in found.items():
        assert stability.answer.replace(" ±", "") in page.replace("\xa0", " ").replace(" ±", "")
        assert stability.selection.answer in page.replace("\xa0", " ")
        problem = store.layer(layer, "target", "source")
        twin = jackknife_low_rank(
            store.shards("target", layer),
            lambda moments, problem=problem: dalr(problem.weight, problem.bias, moments),
            store.heldout("target", "test", layer),
        )
        assert (stability.method, stability.shards) == ("dalr_anchored_affine", 4)
        assert stability.unseen == tuple(twin.unseen)
        assert stability.heldout_error == tuple(twin.heldout_error)
        assert len(stability.selection.common) == store.shape(layer).outputs
    assert "Is the calibration set large enough?" in page
    results = Results.read(project.report_folder / "results.json")
    assert results.layers[0].stability == found["fc1"]
    assert (project.report_folder / "tables/fc1-stability.csv").exists()
    assert len(store.shards("source", "fc1")) == 0  # of the target alone


def test_other_shards_and_none_start_the_moments_over_and_nothing_else(run_file):
    opened(run_file).all()
    again = opened(run_file, "accumulate.shards=3")
    again.all()
    assert len(StoreView.open(again.project.store).shards("target", "fc1")) == 3
    bare = opened(run_file)
    page = bare.all().read_text()
    assert "Is the calibration set large enough?" not in page
    assert read_stability(bare.project.stability) == {"fc1": None, "fc2": None}


@pytest.mark.parametrize("keep", ["true", "false"])
def test_the_ridge_is_chosen_by_shards_and_recorded(run_file, keep):
    run = opened(run_file, "accumulate.shards=4", "solve.ridge=shards", f"capture.keep_activations={keep}")
    run.train()
    run.accumulate()
    run.solve()
    store = StoreView.open(run.project.store)
    problem = store.layer("fc1", "target", None)
    twin = choose_ridge(
        lambda moments, ridge: dalr(problem.weight, problem.bias, moments, ridge=ridge, variant="optimal"),
        shards=list(store.shards("target", "fc1")),
    )
    solution = load_solution(store.root, "fc1", Method.DALR_OPTIMAL_AFFINE)
    facts = solution.diagnostics
    assert facts.ridge_sweep == twin.sweep
    assert facts.chosen_ridge == twin.ridge.value
    assert [tried for tried, _ in facts.ridge_sweep] == list(GRID)
    assert twin.note in facts.notes
    again = dalr(
        problem.weight, problem.bias, problem.inputs, ridge=Ridge.relative(facts.chosen_ridge), variant="optimal"
    )
    assert (again.basis == solution.basis).all()
    assert load_solution(store.root, "fc1", Method.SVD).diagnostics.ridge_sweep == ()


def test_held_out_rows_that_chose_the_ridge_are_said_to_have(run_file):
    run = opened(run_file, "solve.ridge=heldout")
    run.all()
    results = Results.read(run.project.report_folder / "results.json")
    assert any(
        "held-out rows chose the ridge, so the error on them is a little too small" in d for d in results.decisions
    )
    assert any("chosen among 8 from 1e-06 to 10 by the error on held-out rows" in line for line in results.decisions)
    assert json.loads((run.project.report_folder / "results.json").read_text())["layers"][0]["stability"] is None


def test_a_choice_without_its_rows_is_refused_with_the_remedy(run_file):
    with pytest.raises(ConfigError, match=r"solve\.ridge: 'shards' needs at least two shards"):
        opened(run_file, "solve.ridge=shards").accumulate()
    opened(run_file).accumulate()
    with pytest.raises(InvalidInputError, match=r"layer 'fc1': .* needs at least two shards.* accumulate\.shards = 8"):
        opened(run_file, "solve.ridge=shards").solve()
    with pytest.raises(ConfigError, match="'ridge_absolute' replaces 'ridge'"):
        load_config(run_file, ["solve.ridge=heldout", "solve.ridge_absolute=1.0"])
