import dataclasses
import shutil

import pytest
from commands import cli

from dalr_stream.errors import StoreDamagedError
from dalr_stream.storage.manifest import Manifest
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps import accumulate, capture
from dalr_stream.workflow.steps.step_log import StepLog
from dalr_stream.workflow.verify import verify_run


def test_a_whole_run_is_whole_whatever_the_run_file_says_by_now(finished_file, contents):
    before = contents(finished_file.parent)
    run = Run.open(finished_file, set=["evaluate.ranks=[2]"])
    verification = verify_run(run.project)
    verification.require()
    assert {"train: everything it left is in place", "report: everything it left is in place"} <= set(
        verification.whole
    )
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
    assert "WRONG accumulate source: was interrupted: run accumulate again" in done.stdout
    assert "WRONG evaluate: there is no '" in done.stdout
    assert "solve: everything it left is in place" in done.stdout


def test_rows_that_nobody_needs_may_lack(finished_file):
    """Their capture was stopped, or they were deleted: the moments that were made of them are whole."""
    run = Run.open(finished_file)
    StepLog(run.project.output, {}).begin(capture.name_of("source"))
    shutil.rmtree(run.project.store / "activations/test")
    verification = verify_run(run.project)
    verification.require()
    assert "capture source: was interrupted; no step needs it now" in verification.whole
    run.all()
    verify_run(run.project).require()


@pytest.mark.parametrize("name", ["zarr.json", "activations/zarr.json", "activations/test/zarr.json"])
@pytest.mark.parametrize("harm", ["cut", "that of an array"])
def test_a_damaged_group_is_found_and_written_anew(finished_file, contents, name, harm):
    run = Run.open(finished_file)
    before, path = contents(run.project.store), run.project.store / name
    array = (run.project.store / "activations/test/fc1/zarr.json").read_bytes()
    path.write_bytes(path.read_bytes()[:-9] if harm == "cut" else array)
    found = [str(finding) for finding in verify_run(run.project).findings]
    assert any(line.startswith(name) and "the next capture writes it again" in line for line in found)
    run.capture()
    verify_run(run.project).require()
    assert contents(run.project.store) == before


def test_a_store_of_a_pass_is_whole_or_of_no_account_or_goes(finished_file):
    run = Run.open(finished_file, set=['compress.order="sequential"'])
    run.compress()
    verify_run(run.project).require()
    first, second = sorted(run.project.pass_moments.iterdir())[:2]
    manifest = Manifest.read(first)
    dataclasses.replace(manifest, domains={}).write(first)  # as it is before the moments are all kept
    shutil.rmtree(next((first / "moments").glob("*/*/training")))
    weights = next((second / "weights").iterdir())
    shutil.rmtree(weights)
    verification = verify_run(run.project)
    assert f"passes/{first.name}: an interrupted pass, which does not count" in verification.whole
    (finding,) = verification.findings
    assert str(finding).endswith(f"delete '{second}', which compress makes again")
    at_once = verify_run(Run.open(finished_file).project)
    assert f"passes/{second.name}: of other settings, not read; no step needs it now" in at_once.whole
    assert all(finding.part == "compress" for finding in at_once.findings)
    shutil.rmtree(second)
    Run.open(finished_file, set=['compress.order="sequential"'], fresh=True).compress()
    verify_run(run.project).require()
