"""Profiling a run: what the command prints and keeps, and when the report shows it."""

import json

import pytest
from notes import Notes
from typer.testing import CliRunner

from dalr_stream.cli.app import app
from dalr_stream.errors import DalrStreamError
from dalr_stream.network.measure.profile import Stopwatch
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.profile import parse_batch_sizes, profile_run, read_profile
from dalr_stream.workflow.verify import verify_run

QUICK = Stopwatch(turns=3, warm_up=1, least_seconds=0.0)


def project_of(file, *overrides):
    return Project(load_config(file, overrides), file.parent)


def shown(project):
    return Results.read(project.report_folder / "results.json")


def test_the_report_counts_the_macs_of_each_layer_before_and_after(finished_file):
    """fc1 is a pair of rank 4 whose outputs were narrowed to 16; fc2 keeps 6 nodes, so fc3 reads 6."""
    before, after = shown(project_of(finished_file)).sizes
    assert before.macs == {"fc1": 12 * 16, "fc2": 16 * 10, "fc3": 10 * 3}
    assert after.macs == {"fc1.0": 12 * 4, "fc1.1": 4 * 16, "fc2": 16 * 6, "fc3": 6 * 3}
    table = (finished_file.parent / "out/report/tables/macs.csv").read_text().splitlines()
    assert table[0] == "layer,macs_before,macs_after,macs_share"
    assert [line.split(",")[:3] for line in table[1:]] == [
        ["fc1", "192.0", "112.0"],
        ["fc2", "160.0", "96.0"],
        ["fc3", "30.0", "18.0"],
        ["all of these", "382.0", "226.0"],
    ]


def test_a_profile_is_kept_and_the_report_picks_it_up(finished_file):
    project = project_of(finished_file)
    assert shown(project).profile is None
    found = profile_run(project, (1, 5), stopwatch=QUICK)
    assert [(one.name, one.batch_size, one.macs_before, one.macs_after) for one in found.layers] == [
        ("fc1", 1, 192, 112),
        ("fc2", 1, 160, 96),
        ("fc3", 1, 30, 18),
        ("fc1", 5, 960, 560),
        ("fc2", 5, 800, 480),
        ("fc3", 5, 150, 90),
    ]
    assert [one.macs_after for one in found.whole] == [226, 5 * 226]
    assert read_profile(project) == found
    page = Run(project).report()
    assert shown(project).profile == found
    assert "Measured time of one batch" in page.read_text()
    assert (page.parent / "tables/latency.csv").read_text().count("\n") == 1 + 6 + 2


def test_a_profile_of_other_weights_is_not_shown(finished_file):
    profile_run(project_of(finished_file), (1,), stopwatch=QUICK)
    changed = project_of(finished_file, "compress.fc1.size=3")
    run = Run(changed)
    run.report()
    assert read_profile(changed) is None
    assert shown(changed).profile is None
    assert not (changed.report_folder / "tables/latency.csv").exists()


def test_without_a_profile_that_is_damaged_the_report_is_made_and_says_so(finished_file):
    project = project_of(finished_file)
    profile_run(project, (1,), stopwatch=QUICK)
    Run(project).report()
    record = project.output / "profile.json"
    record.write_bytes(record.read_bytes()[:-9])
    assert [finding.part for finding in verify_run(project).findings if "run profile again" in str(finding)] == [
        "profile.json"
    ]
    notes = Notes()
    page = Run(project, progress=notes).report()
    assert any(note.startswith("report: no timings are shown: ") and "damaged" in note for note in notes.said)
    assert "their record is damaged, run profile again" in page.read_text()
    assert shown(project).profile is None
    found = Run(project).profile((1,), stopwatch=QUICK)
    assert "their record is damaged" not in Run(project).report().read_text()
    assert shown(project).profile == found
    verify_run(project).require()


def test_profiling_makes_no_step_stale_but_the_report(finished_file, contents):
    project = project_of(finished_file)
    before = contents(project.output)
    profile_run(project, (1,), stopwatch=QUICK)
    after = contents(project.output)
    assert {path for path in after if after[path] != before.get(path)} == {"profile.json"}
    assert [step for step, would in Run(project).outlook() if would] == ["report"]


def test_the_command_prints_a_table_that_fits_or_json(finished_file):
    done = CliRunner().invoke(app, ["profile", str(finished_file), "--batch-sizes", "1,3"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.split()[:1] == ["fc1"] for line in lines) == 2
    assert sum("whole network" in line for line in lines) == 2
    done = CliRunner().invoke(app, ["profile", str(finished_file), "--batch-sizes", "2", "--json"])
    plain = json.loads(done.stdout)
    assert [(one["name"], one["batch_size"]) for one in plain["layers"]] == [("fc1", 2), ("fc2", 2), ("fc3", 2)]
    assert plain["whole"][0]["macs_before"] == 2 * 382
    assert isinstance(plain["warnings"], list)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "1;2"], "--batch-sizes: must read like 1,8,64, got '1;2'"),
        (["--batch-sizes", "0"], "batch sizes must be 1 or more, got 0"),
        (["--set", 'run.output="elsewhere"'], "there is no compressed network at .*: run compress first"),
    ],
)
def test_what_cannot_be_profiled_is_said(finished_file, arguments, message):
    done = CliRunner().invoke(app, ["profile", str(finished_file), *arguments])
    assert isinstance(done.exception, DalrStreamError)
    with pytest.raises(DalrStreamError, match=message):
        raise done.exception


def test_batch_sizes_are_read_from_text():
    assert parse_batch_sizes("1, 8,64") == (1, 8, 64)
