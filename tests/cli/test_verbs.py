import json
import subprocess
import sys

import pytest
from commands import cli
from typer.testing import CliRunner

from dalr_stream.cli import app as commands
from dalr_stream.cli import steps
from dalr_stream.cli.options import with_machine
from dalr_stream.cli.verbs import GROUPS
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

FEW = ("--set", 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]')


def test_help_imports_none_of_the_heavy_libraries():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom dalr_stream.cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "verbs = 'run layers estimate capture accumulate solve inspect compress finetune profile'.split()\n"
        "verbs += 'evaluate report verify merge diff'.split()\n"
        "assert all(verb in result.output for verb in verbs), result.output\n"
        "heavy = {'torch', 'dask', 'zarr', 'numpy', 'scipy', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_every_verb_of_a_run_in_turn(run_file):
    layers = cli("layers", run_file, *FEW)
    assert "fc1" in layers.stdout
    assert "16 x 12" in layers.stdout
    estimate = cli("estimate", run_file, *FEW, "--ranks", "4")
    assert "total" in estimate.stdout
    assert "capture and accumulate: about " in estimate.stdout
    assert "4 ranks: about " in estimate.stdout
    assert not (run_file.parent / "out").exists()  # nothing was trained
    assert cli("accumulate", run_file, *FEW).returncode == 0
    solved = cli("solve", run_file, *FEW)
    assert "DALR anchored, affine" in solved.stdout
    compressed = cli("compress", run_file, *FEW)
    assert "parameters" in compressed.stderr
    assert compressed.stdout == ""
    evaluated = cli("evaluate", run_file, *FEW)
    assert "rank" in evaluated.stdout
    report = cli("report", run_file, *FEW)
    assert report.stdout == f"{(run_file.parent / 'out' / 'report' / 'report.html').as_uri()}\n"
    again = cli("run", run_file, *FEW)
    assert "evaluate: up to date, skipped" in again.stderr
    assert f"report: {report.stdout}" in again.stdout
    verified = cli("verify", run_file, *FEW)
    assert "target/fc1: 90 rows in 1 tile" in verified.stdout
    assert {r.returncode for r in (layers, estimate, solved, compressed, evaluated, report, again, verified)} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "absent.toml"), "there is no run file at 'absent.toml'"),
        (("run", "{file}", "--set", "solve.rigde=1"), "unknown key 'solve.rigde'; nearest: 'ridge'"),
        (("solve", "{file}"), "yet: run accumulate first, or run, which does every step"),
        (("compress", "{file}", "--params", "30%,50%"), "yet: run accumulate first"),
        (("estimate", "{file}", "--set", 'accumulate.memory_limit="1KiB"'), "the limit is 0 MiB"),
    ],
)
def test_a_failure_is_one_line_and_a_code_without_a_traceback(run_file, arguments, message):
    done = cli(*(argument.format(file=run_file) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("dalr-stream: ")
    assert done.stderr.count("\n") == 1


CLI_WITH_A_LIMIT = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from dalr_stream.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


def limited(file, verb, bytes_a_file):
    command = [sys.executable, "-c", CLI_WITH_A_LIMIT, str(bytes_a_file), verb, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


def test_a_disk_that_refuses_is_one_line_and_the_same_command_goes_on(run_file):
    """A real limit: no file may grow past 2 KiB, and the first tile would."""
    Run(Project(load_config(run_file), run_file.parent)).train()
    refused = limited(run_file, "capture", 2**11)
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("dalr-stream: ")
    assert "Traceback" not in refused.stderr
    assert "File too large" in last
    assert "run the same command again" in last
    again = limited(run_file, "capture", 2**30)
    assert again.returncode == 0, again.stderr


def test_an_interruption_is_one_line_and_a_code(run_file, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "run_on_ranks", interrupted)
    done = CliRunner().invoke(commands.app, ["run", str(run_file)])
    assert done.exit_code == 130
    assert done.stderr == "Interrupted. Run the same command again to resume.\n"


def test_a_size_on_the_command_line_is_said_to_be_for_once(finished_file):
    done = cli("compress", finished_file, "--params", "25%")
    assert 'uses [compress] again: write params = "25%" there to keep them' in done.stderr


def test_options_about_the_machine_are_keys_of_the_run_file(run_file):
    given = with_machine(["solve.ridge=0.1"], "8GiB", workers=3)
    assert load_config(run_file, given).accumulate.memory_limit_bytes == 8 * 2**30
    assert load_config(run_file, given).accumulate.workers == 3
    assert (
        load_config(run_file, with_machine(None, None, scheduler="tcp://host:1")).accumulate.scheduler == "tcp://host:1"
    )


def test_rows_that_are_folded_directly_are_not_captured(run_file):
    done = cli("capture", run_file, "--set", "capture.keep_activations=false")
    assert done.returncode == 1
    assert done.stderr.startswith("dalr-stream: capture.keep_activations: is false, so rows are folded as they come")
    assert not (run_file.parent / "out").exists()


def test_what_every_verb_does_fits_on_a_line():
    for verb in commands.app.registered_commands:
        assert len(verb.callback.__doc__.partition("\n")[0]) < 60, verb.callback.__name__


def test_verify_lists_all_damage_and_ends_in_a_code(finished_file):
    assert cli("verify", finished_file).returncode == 0
    store = finished_file.parent / "out" / "store.zarr"
    tile = store / "activations/target/fc1/c/0/0"
    tile.write_bytes(tile.read_bytes()[:-1])
    (store / "weights/fc2/bias/zarr.json").unlink()
    done = cli("verify", finished_file)
    assert done.returncode == 1
    assert "WRONG target/fc1: " in done.stdout
    assert "WRONG weights/fc2: " in done.stdout
    assert "target/fc2: 90 rows in 1 tile" in done.stdout
    assert "2 findings" in done.stderr.splitlines()[-1]


def test_names_are_whole_where_no_terminal_reads_them(run_file, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    facts = json.loads(cli("layers", run_file, "--json").stdout)
    shown = cli("layers", run_file).stdout
    assert [fact["layer"] for fact in facts][:2] == ["fc1", "fc2"]
    assert facts[0]["read_by"] == ["fc2"]
    assert (facts[0]["outputs"], facts[0]["inputs"], facts[0]["weights"]) == (16, 12, 192)
    assert all(fact["layer"] in shown for fact in facts)
    assert "…" not in shown


def test_help_has_every_verb_under_a_heading_and_each_can_be_quiet():
    shown = CliRunner().invoke(commands.app, ["--help"]).output
    assert "\nMore:" not in shown
    assert all(f"\n{heading}:" in shown for heading in GROUPS)
    assert "--install-completion" in shown
    for verb in (verb for verbs in GROUPS.values() for verb in verbs):
        assert "--quiet" in CliRunner().invoke(commands.app, [verb, "--help"]).output, verb


def test_a_quiet_command_says_nothing_on_the_way(finished_file):
    done = cli("run", finished_file, *FEW, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "report: file://" in done.stdout


def test_what_other_programs_read_is_json(finished_file, tmp_path):
    facts = json.loads(cli("estimate", finished_file, *FEW, "--json").stdout)
    assert facts["peak_bytes"]["accumulate"] > 0
    assert {layer["name"] for layer in facts["layers"]} >= {"fc1", "fc2"}
    whole = json.loads(cli("verify", finished_file, *FEW, "--json").stdout)
    assert whole["wrong"] == []
    scores = json.loads(cli("evaluate", finished_file, *FEW, "--json").stdout)
    assert scores["metric"] == "accuracy"
    store = finished_file.parent / "out" / "store.zarr"
    (layer, *_) = json.loads(cli("diff", store, "target", "source", "--top", "2", "--json").stdout)
    assert [set(one) for one in layer["features"]] == [
        {"feature", "target_mean", "source_mean", "gap", "covariance_shift"}
    ] * 2
    shards = json.loads(cli("merge", tmp_path / "all.zarr", store, "--json").stdout)
    assert {one["domain"] for one in shards} == {"target", "source", "test"}
