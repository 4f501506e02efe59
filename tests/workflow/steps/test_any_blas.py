"""`accumulate.any_blas` reaches the moments, which say so, and changes nothing that is there."""

import sys

from commands import cli
from tiny_run_file import write_run

from dalr_stream.numerics.linalg.rank_k import blas_build
from dalr_stream.numerics.statistics.fold_rule import ANY_BLAS
from dalr_stream.progress import Silent
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps import accumulate
from dalr_stream.workflow.steps.session import Session

ANY = "accumulate.any_blas=true"


def opened(file, *overrides):
    sys.modules.pop("tiny_run", None)
    return Run.open(file, set=['solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]', *overrides])


def record(run):
    return moments_path(run.project.store, "target", "fc1", "training")


def blas_of(run):
    return provenance_of(record(run))["rule"]["blas"]


def fresh(run):
    """Whether the records are taken for what the settings of now would make."""
    (step, *_) = accumulate.steps(Session(run.project, Silent()))
    return not list(step.problems(step.made_from()))


def test_the_moments_say_that_any_blas_was_accepted_and_are_the_same(tmp_path):
    moments = {}
    for expected, keys in ((blas_build(), ()), (ANY_BLAS, (ANY,))):
        run = opened(write_run(tmp_path / expected), *keys)
        run.accumulate()
        assert blas_of(run) == expected
        moments[expected] = load_moments(record(run))
    assert moments[ANY_BLAS].same_bits(moments[blas_build()])


def test_moments_that_are_there_stay_whichever_way_it_is_set(tmp_path):
    for name, first, then in (("a", (), (ANY,)), ("b", (ANY,), ())):
        file = write_run(tmp_path / name)
        opened(file, *first).accumulate()
        before = record(opened(file)).stat().st_ino
        again = opened(file, *then)
        assert fresh(again)
        again.accumulate()
        assert record(again).stat().st_ino == before


def test_moments_of_a_version_that_added_up_otherwise_stay(tmp_path):
    run = opened(write_run(tmp_path / "a"))
    run.accumulate()
    folder = record(run).parents[1]
    for path in sorted(folder.glob("*/*")):
        made_from = provenance_of(path)
        rule = {name: value for name, value in made_from["rule"].items() if name not in ("blas", "summation")}
        save_moments(path, load_moments(path), {**made_from, "rule": rule})
    before = record(run).stat().st_ino
    assert fresh(run)
    run.accumulate()
    assert record(run).stat().st_ino == before


def test_the_option_is_the_key(tmp_path):
    file = write_run(tmp_path / "tiny")
    done = cli(
        "accumulate", file, "--any-blas", "--set", 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]'
    )
    assert done.returncode == 0, done.stderr
    assert blas_of(opened(file)) == ANY_BLAS
