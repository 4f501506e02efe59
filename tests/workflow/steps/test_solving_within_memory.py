"""Solving within the budget: the route by the rows that are kept, and what does not fit is refused before a byte."""

import pytest

from dalr_stream.engine.stores.store import open_store
from dalr_stream.errors import MemoryLimitError
from dalr_stream.streaming import solving_cost
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps.solving.solving_plan import planned_solving, solving_from

INVERTING = ("dalr_published", "dalr_published_bc", "dalr_published_affine", "dalr_optimal", "dalr_optimal_affine")
FEW = "domains.target.options={samples=9}"  # fewer than the 12 and 16 inputs of fc1 and fc2
QUICK = ("network.train_options={steps=2}", "compress={}", "evaluate.ranks=[2]")


def routes(run):
    store = open_store(run.project.store)
    return {method.value: store.solution("fc1", method).diagnostics.route for method in store.methods("fc1")}


def planned(run):
    project = run.project
    plan = planned_solving(project, project.stand_in(), project.estimate(project.stand_in()))
    return {(cost.layer, cost.method.value): cost.route.value for cost in plan.costs}


def test_few_rows_that_are_kept_are_solved_from_by_themselves_as_planned(run_file):
    run = Run.open(run_file, set=[FEW, *QUICK])
    before = planned(run)
    run.all()
    found = routes(run)
    for method in INVERTING:
        assert found[method] == before["fc1", method] == "dual"
    assert found["dalr_anchored"] == before["fc1", "dalr_anchored"] == "outputs"
    assert {cost.route.value for cost in solving_from(run.project, run.store.view).costs} >= {"dual", "greedy"}
    curves = {curve.method: curve for curve in results(run.project).layers[0].error_curves}
    assert set(INVERTING) <= curves.keys()
    assert all(len(curves[method].heldout) == len(curves[method].training) for method in INVERTING)


def test_rows_that_are_not_kept_or_many_go_by_moments(run_file):
    direct = Run.open(run_file, set=[FEW, *QUICK, "capture.keep_activations=false", "run.output='direct'"])
    many = Run.open(run_file, set=[*QUICK, "run.output='many'"])
    for run in (direct, many):
        assert planned(run)["fc1", "dalr_optimal"] == "cholesky"
        run.accumulate()
        run.solve()
        assert routes(run)["dalr_optimal"] in ("cholesky", "eigen")


@pytest.mark.parametrize("verb", ["all", "capture"])
def test_what_does_not_fit_is_refused_before_anything_is_recorded(run_file, verb, monkeypatch):
    monkeypatch.setattr(solving_cost, "SMALL_THINGS", 64 * 2**20)  # folding fits, solving does not
    run = Run.open(run_file, set=["accumulate.memory_limit=32MiB"])
    with pytest.raises(MemoryLimitError, match=r"layer 'fc1': solving 16 x 12 by \w+ needs 64 MiB \(route: \w+\)"):
        getattr(run, verb)()
    assert not run.project.store.exists()


def test_moments_that_are_there_are_not_solved_from_under_a_limit_that_does_not_hold(run_file):
    Run.open(run_file, set=QUICK).accumulate()
    with pytest.raises(MemoryLimitError, match="or raise the limit"):
        Run.open(run_file, set=[*QUICK, "accumulate.memory_limit=4MiB"]).solve()
    assert not (run_file.parent / "out" / "store.zarr" / "solutions").exists()
