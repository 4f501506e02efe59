"""One command at a time in a run's folder, and only its own litter is cleared."""

import multiprocessing
import sys

import pytest

from dalr_stream.errors import FingerprintMismatchError, StoreLockedError
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.run_folder import one_command
from dalr_stream.workflow.steps import accumulate
from dalr_stream.workflow.steps.step_log import StepLog


def held(file, ready, done):
    with one_command(Run.open(file).project):
        ready.set()
        done.wait(60)


@pytest.fixture
def busy(finished_file):
    """The run file of a folder in which another process is at work."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=held, args=(finished_file, ready, done))
    other.start()
    assert ready.wait(60)
    yield finished_file
    done.set()
    other.join(60)


def test_a_second_command_is_refused_by_name_and_changes_nothing(busy, contents):
    before = contents(busy.parent / "out")
    for verb in ("all", "train", "capture", "accumulate", "solve", "compress", "evaluate", "report", "profile"):
        with pytest.raises(StoreLockedError, match=r"out' is in use by another command: wait for it, or name another"):
            getattr(Run.open(busy, set=["solve.ridge=0.1"]), verb)()
    assert contents(busy.parent / "out") == before


def test_a_command_that_failed_leaves_the_folder_free(finished_file):
    run = Run.open(finished_file, set=["domains.target.batches=tiny_run:with_nan"], fresh=True)
    with pytest.raises(ValueError, match="NaN"):
        run.all()
    sys.modules.pop("tiny_run")
    Run.open(finished_file).all()


def test_what_a_killed_command_left_is_cleared_and_nothing_else(finished_file):
    out = finished_file.parent / "out"
    litter = [out / ".tmp-new-evaluation.json-0123abcd", out / ".tmp-old-steps.json-0123abcd"]
    others = [out / ".tmp-new-notes.json-0123abcd", out / ".tmp-mine", out / "notes.txt", out / "x.y.partial"]
    for path in (*litter, *others):
        path.write_text("")
    folder = out / ".tmp-new-compressed-89abcdef"
    folder.mkdir()
    (folder / "model.safetensors").write_text("")
    (out / ".tmp-old-finetuned-0123abcd").symlink_to(finished_file.parent)
    Run.open(finished_file).report()
    assert not any(path.exists() for path in (*litter, folder))
    assert all(path.exists() for path in (*others, finished_file))


def test_a_network_that_was_being_replaced_is_put_back(finished_file, contents):
    out = finished_file.parent / "out"
    before = contents(out / "compressed")
    (out / "compressed").rename(out / ".tmp-old-compressed-0123abcd")
    Run.open(finished_file).report()
    assert contents(out / "compressed") == before


def test_moments_of_two_settings_are_refused_until_they_are_accumulated(finished_file):
    run = Run.open(finished_file)
    StepLog(run.project.output, {}).begin(accumulate.name_of("source"))
    for verb in (run.solve, run.report):
        with pytest.raises(FingerprintMismatchError, match=r"'accumulate source' was interrupted.*: run accumulate"):
            verb()
    run.accumulate()
    run.report()
