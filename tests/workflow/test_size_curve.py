"""`compress --params 20%,30%,50%`: every budget compressed, measured and scored, by one command."""

import csv
import json

import pytest
from commands import cli
from notes import Notes
from tiny_run_file import write_run

import dalr_stream as ds
from dalr_stream.errors import ConfigError
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.run_folder import one_command

FEW = ['solve.methods=["dalr_anchored_affine", "spectral"]', "evaluate.ranks=[]"]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("curve") / "run")
    text = path.read_text()
    path.write_text(
        text[: text.index("[compress]")] + '[compress]\nparams = "60%"\n\n' + text[text.index("[evaluate]") :]
    )
    Run.open(path, set=FEW).accumulate()
    return path


@pytest.fixture(scope="module")
def curve(run_file):
    return Run.open(run_file, set=FEW).size_curve(["50%", "0.3", "70%", "0.5"])


def test_it_has_a_network_for_each_budget_smallest_first(run_file, curve):
    assert [one.label for one in curve.networks] == ["params 30%", "params 50%", "params 70%"]
    sizes = [one.parameters for one in curve.networks]
    assert sizes == sorted(sizes)
    assert sizes[-1] < curve.original.parameters
    assert curve.original.distance == 0.0
    assert all(one.distance > 0 for one in curve.networks)
    run = Run.open(run_file, set=FEW)
    for one in curve.networks:
        network = ds.load(one.folder, run.project.code.placed)
        assert run.score(network) == one.score
        assert ds.network.parameter_count(network) == one.parameters
    assert not run.project.compressed.exists()  # the run's own network is another


def test_table_record_and_picture_lie_in_the_run(run_file, curve):
    folder = run_file.parent / "out" / "sizes"
    head, *rows = csv.reader((folder / "sizes.csv").read_text().splitlines())
    assert head == ["network", "parameters", "parameter_share", "bytes", "distance", "accuracy", "accuracy_change"]
    assert [row[0] for row in rows] == ["uncompressed", "params 30%", "params 50%", "params 70%"]
    plain = json.loads((folder / "sizes.json").read_text())
    assert plain["networks"][0]["score"] == curve.networks[0].score
    assert (folder / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_does_nothing_again_and_says_beforehand_how_much_it_may_be(run_file, curve):
    notes = Notes()
    again = Run.open(run_file, set=FEW, progress=notes).size_curve(["30%", "50%", "70%"])
    assert again == curve
    (plan,) = [note for note in notes.said if "to compare" in note]
    assert "3 networks to compare: each the best of at most" in plan
    assert "4 networks scored on the batches of [evaluate]" in plan
    assert "of forward passes" in plan
    assert not [note for note in notes.said if "->" in note]  # no network is compressed


def test_other_weights_and_other_batches_are_measured_anew(run_file, curve):
    other = [*FEW, "evaluate.options.samples=40"]
    scored = Run.open(run_file, set=other).size_curve(["50%"])
    assert scored.networks[0].parameters == curve.networks[1].parameters
    kept = json.loads((run_file.parent / "out" / "sizes" / "scores.json").read_text())["content"]
    assert len(kept) == 4 + 2


def test_the_saved_network_alone_is_scored_where_no_shares_are_given(run_file):
    alone = Run.open(run_file, set=FEW).size_curve()
    assert [one.label for one in alone.networks] == ["params 60%"]
    assert alone.networks[0].folder == str(run_file.parent / "out" / "compressed")


def test_the_distance_alone_needs_no_labels(run_file, curve):
    bare = Run.open(run_file, set=FEW).size_curve(["30%"], evaluate=False)
    assert (bare.metric, bare.networks[0].score) == (None, None)
    assert bare.networks[0].distance == curve.networks[0].distance
    assert [column.key for column in bare.table().columns][-1] == "distance"
    bare.write(run_file.parent / "bare")


def test_bad_shares_are_refused_before_anything_is_compressed(run_file):
    run = Run.open(run_file, set=FEW)
    with pytest.raises(ConfigError, match=r"compress\.params: must read like 25% or 0\.25, got '3x'"):
        run.size_curve(["20%", "3x"])
    assert not (run_file.parent / "out" / "sizes" / "params-20").exists()


def test_the_command_prints_a_table_and_where_the_picture_is(run_file):
    chosen = [part for one in FEW for part in ("--set", one)]
    done = cli("compress", run_file, *chosen, "--params", "30%,50%", "--evaluate")
    assert done.returncode == 0, done.stderr
    assert "params 30%" in done.stdout
    assert "accuracy, %" in done.stdout
    assert f"picture: {(run_file.parent / 'out' / 'sizes' / 'sizes.png').as_uri()}" in done.stdout
    facts = json.loads(cli("compress", run_file, *chosen, "--params", "30%,50%", "--json", "-q").stdout)
    assert [one["label"] for one in facts["networks"]] == ["params 30%", "params 50%"]


def test_what_a_killed_command_left_in_a_budgets_folder_is_cleared_and_nothing_else(tmp_path):
    project = Run.open(write_run(tmp_path / "run")).project
    folder = project.output / "sizes" / "params-30"
    for name in (".tmp-new-network-0123abcd", ".tmp-old-network-0123abcd", "mine"):
        (folder / name).mkdir(parents=True)
    (folder.parent / ".tmp-new-sizes.png-0123abcd").write_text("half")
    with one_command(project):
        left = {path.relative_to(folder.parent).as_posix() for path in folder.parent.rglob("*")}
    assert left == {
        "params-30",
        "params-30/network",
        "params-30/mine",
    }  # the old network is put back: it is all there is
