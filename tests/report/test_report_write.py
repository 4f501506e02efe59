"""The folder of a report: complete, exact, the same bytes each time, whole whatever happens while it is written."""

import csv
import dataclasses
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import synthetic_results as synthetic

from dalr_stream.report import write
from dalr_stream.report.records.results import Results
from dalr_stream.report.write import write_report

SMALL = synthetic.results(synthetic.layer("classifier.0", 48, 64, "classifier.3", 32))
LEAN = synthetic.results(
    dataclasses.replace(SMALL.layers[0], error_curves=(), score_curves=SMALL.layers[0].score_curves[:2], headline=())
)
"""Has fewer and lighter figures: for tests of how files are put in place."""
FIGURES = ("activity", "errors", "retention", "score", "score_both", "spectra")
TABLES = ("activity", "domains", "errors", "headline", "points", "retention", "scores", "spectra")

# Writes LEAN with another name and baseline, and is killed as the sixth file is about to be moved into place.
KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
import test_report_write as tests
moved = []
replace = pathlib.Path.replace
def kill_at_the_sixth(self, target):
    moved.append(target)
    if len(moved) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
pathlib.Path.replace = kill_at_the_sixth
tests.write_report(tests.changed(), pathlib.Path(sys.argv[2]))
"""


ROOT = Path(__file__).parents[2]


def changed():
    return dataclasses.replace(LEAN, baseline_score=LEAN.baseline_score / 2, name="another run")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("written") / "deep" / "report"
    assert write_report(SMALL, where) == where / "report.html"
    return where


@pytest.fixture
def lean(tmp_path):
    return write_report(LEAN, tmp_path / "lean").parent


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert {len(line) for line in lines} == {len(header)}
    return header, lines


def column(path, name):
    header, lines = read_csv(path)
    return [float(line[header.index(name)]) for line in lines]


def test_the_folder_holds_every_file_and_nothing_else(folder):
    expected = {"report.html", "results.json", "files.txt", "tables/sizes.csv", "tables/layers.csv"}
    expected |= {f"figures/classifier.0-{name}.png" for name in FIGURES}
    expected |= {f"tables/classifier.0-{name}.csv" for name in TABLES}
    assert set(contents(folder)) == expected
    assert set((folder / "files.txt").read_text().split()) == expected - {"files.txt"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"figures", "tables"}


def test_the_package_draws_without_the_other_rings_and_reads_records_without_drawing():
    script = (
        "import sys, dalr_stream.report.records.results; assert 'matplotlib' not in sys.modules\n"
        "import dalr_stream.report.write, dalr_stream.report.terminal\n"
        "print([name for name in ('torch', 'dask', 'zarr', 'matplotlib.pyplot') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603
    assert found.stdout.strip() == "[]"


def test_results_json_is_the_record(folder):
    assert Results.read(folder / "results.json") == SMALL


def test_pictures_are_png_at_150_dpi(folder):
    for name in FIGURES:
        raw = (folder / "figures" / f"classifier.0-{name}.png").read_bytes()
        assert raw.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", raw[16:24])
        assert width == 9.0 * 150
        assert height > 3 * 150
        start = raw.index(b"pHYs") + 4
        dots_per_metre, _ = struct.unpack(">II", raw[start : start + 8])
        assert dots_per_metre == round(150 / 0.0254)


def test_csv_files_parse_back_to_the_same_numbers(folder):
    (layer,) = SMALL.layers
    tables = folder / "tables"
    for curve in layer.error_curves:
        assert column(tables / "classifier.0-errors.csv", f"{curve.method}_training") == list(curve.training)
        assert column(tables / "classifier.0-errors.csv", f"{curve.method}_heldout") == list(curve.heldout)
    for domain in layer.activity:
        assert column(tables / "classifier.0-activity.csv", domain.domain) == list(domain.active_rate)
    assert column(tables / "classifier.0-domains.csv", "half_share") == [row.half_share for row in layer.activity]
    assert column(tables / "classifier.0-spectra.csv", "weight") == list(layer.spectra.weight)
    assert column(tables / "classifier.0-spectra.csv", "outputs") == list(layer.spectra.outputs)
    for curve in layer.retention_curves:
        assert column(tables / "classifier.0-retention.csv", curve.method) == list(curve.retention)
    assert column(tables / "sizes.csv", "bytes") == [size.bytes for size in SMALL.sizes]


def test_csv_of_accuracy_points_and_of_the_headline(folder):
    (layer,) = SMALL.layers
    _, lines = read_csv(folder / "tables" / "classifier.0-points.csv")
    assert [(line[0], int(line[1]), line[2], int(line[3]), float(line[4])) for line in lines] == [
        (c.method, p.size, "" if p.layer_parameters is None else str(p.layer_parameters), p.pair_parameters, p.score)
        for c in layer.score_curves
        for p in c.points
    ]
    header, lines = read_csv(folder / "tables" / "classifier.0-headline.csv")
    rows = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    for row in layer.headline:
        for field in ("size", "layer_parameters", "pair_parameters", "score", "svd_ratio"):
            value = getattr(row, field)
            head = "test_accuracy" if field == "score" else field
            assert rows[row.method][head] == ("" if value is None else repr(value))


def test_the_same_record_gives_the_same_bytes_whatever_the_users_settings(folder, tmp_path):
    with mpl.rc_context({"font.size": 21.0, "xtick.direction": "in", "svg.fonttype": "path"}):
        write_report(SMALL, tmp_path)
    assert contents(tmp_path) == contents(folder)


def test_writing_over_an_old_report_replaces_it_and_clears_what_it_no_longer_has(folder, lean, tmp_path):
    over = tmp_path / "over"
    shutil.copytree(folder, over)
    (over / "figures" / "mine.png").write_text("not the report's")
    (over / ".report-unfinished").mkdir()
    (over / ".report-unfinished" / "litter").write_text("left by a crash")
    write_report(LEAN, over)
    assert "figures/classifier.0-errors.png" in contents(folder)
    assert "figures/classifier.0-errors.png" not in contents(over)
    assert contents(over) == {**contents(lean), "figures/mine.png": b"not the report's"}


def test_an_inventory_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    outside = tmp_path / "precious.txt"
    outside.write_text("keep")
    inside = tmp_path / "report"
    inside.mkdir()
    (inside / "files.txt").write_text(f"../precious.txt\n{outside}\n")
    write_report(LEAN, inside)
    assert outside.read_text() == "keep"


def test_a_failure_while_writing_leaves_the_old_report_whole(lean, monkeypatch):
    before = contents(lean)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(write, "render_sections", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(changed(), lean)
    assert {name: raw for name, raw in contents(lean).items() if not name.startswith(".report-unfinished")} == before


def test_a_kill_while_files_are_moved_leaves_each_file_whole_and_the_old_page(lean, tmp_path):
    old = contents(lean)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(lean)]
    killed = subprocess.run(command, env=environment, check=False)  # noqa: S603
    assert killed.returncode == -signal.SIGKILL
    new = contents(write_report(changed(), tmp_path / "fresh").parent)
    found = {name: raw for name, raw in contents(lean).items() if not name.startswith(".report-unfinished")}
    assert set(found) == set(old)
    assert all(raw in (old[name], new[name]) for name, raw in found.items())
    assert any(raw != old[name] for name, raw in found.items()), "the kill must come after the first moves"
    assert found["report.html"] == old["report.html"]
    write_report(changed(), lean)
    assert contents(lean) == new


def test_files_of_a_report_that_was_killed_while_it_was_moved_go_with_the_next(lean, monkeypatch):
    """Those that only the killed one has: they are in the inventory before they are in the folder."""
    expected = contents(lean)
    replace = Path.replace

    def killed(self, target):
        if self.name == write.PAGE:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_report(SMALL, lean)
    assert len(contents(lean)) > len(expected) + 1
    write_report(LEAN, lean)
    assert contents(lean) == expected


@pytest.mark.parametrize("damage", [b"\0" * 90, b"\xff\xfe figures/a.png", b"", b"tables\nfigures/../../x\n"])
def test_a_damaged_inventory_is_replaced(lean, damage):
    expected = contents(lean)
    (lean / "files.txt").write_bytes(damage)
    write_report(LEAN, lean)
    assert contents(lean) == expected
