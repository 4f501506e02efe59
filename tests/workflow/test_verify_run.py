import pytest
from commands import cli

from dalr_stream.errors import StoreDamagedError
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps import accumulate
from dalr_stream.workflow.steps.step_log import StepLog
from dalr_stream.workflow.verify import verify_run


def test_a_whole_run_is_whole_whatever_the_run_file_says_by_now(finished_file, contents):
    before = contents(finished_file.parent)
    run = Run.open(finished_file, set=["evaluate.ranks=[2]"])
    verification = verify_run(run.project)
    verification.require()
    assert {"train: all that it left is there", "report: all that it left is there"} <= set(verification.whole)
    assert contents(finished_file.parent) == before


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("evaluation.json", "evaluate"),
        ("compression.json", "compress"),
        ("compressed/model.safetensors", "compress"),
        ("network.safetensors", "train"),
        ("report/report.html", "report"),
        ("stability.json", "solve"),
    ],
)
def test_a_changed_byte_of_a_step_s_files_is_named_with_the_command_that_mends_it(finished_file, name, step):
    run = Run.open(finished_file)
    path = run.project.output / name
    path.write_bytes(path.read_bytes()[:-3] + b"...")
    findings = verify_run(run.project).findings
    assert [finding for finding in map(str, findings) if finding.endswith(f"run {step} again") and str(path) in finding]
    assert all(str(finding).startswith(step) for finding in findings)
    with pytest.raises(StoreDamagedError, match=f"{len(findings)} finding"):
        verify_run(run.project).require()
    getattr(run, step)()
    verify_run(run.project).require()


def test_the_command_line_lists_them(finished_file):
    run = Run.open(finished_file)
    StepLog(run.project.output, {}).begin(accumulate.name_of("source"))
    (run.project.output / "evaluation.json").unlink()
    done = cli("verify", finished_file)
    assert done.returncode == 1
    assert "WRONG accumulate source: was stopped midway: run accumulate again" in done.stdout
    assert "WRONG evaluate: there is no '" in done.stdout
    assert "solve: all that it left is there" in done.stdout
