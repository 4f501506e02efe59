"""What experiments keep is named by settings and code: equal ones are read again, any other is made anew."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

PIPELINES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.syspath_prepend(PIPELINES / "shared")
    return importlib.import_module("kept_results")


@pytest.fixture
def code(kept, tmp_path, monkeypatch):
    """Write modules into a folder of pipelines of the test's own; return a function that digests `outer.work`."""
    monkeypatch.setattr(kept, "PIPELINES", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def digest(settings, **sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        outer = sys.modules.get("outer") or importlib.import_module("outer")
        return kept.digest_of(settings, outer.work)

    yield digest
    for name in ("outer", "inner", "aside"):
        sys.modules.pop(name, None)


OUTER = "import inner\ndef work(): return inner.VALUE\n"


def test_a_digest_follows_settings_and_every_module_that_is_imported(code):
    first = code({"steps": 1}, outer=OUTER, inner="VALUE = 1\n", aside="VALUE = 1\n")
    assert code({"steps": 1}) == first
    assert code({"steps": 1}, aside="VALUE = 2\n") == first
    assert code({"steps": 2}) != first
    assert code({"steps": 1}, inner="VALUE = 2\n") != first
    assert code({"steps": 1}, inner="VALUE = 1\n") == first
    assert code({"steps": 1}, outer=OUTER + "# a word\n") != first


def test_an_import_inside_a_function_and_a_circle_of_imports_are_followed(code):
    inside = "def work():\n    from inner import VALUE\n    return VALUE\nimport inner\n"
    first = code({}, outer=inside, inner="import outer\nVALUE = 1\n")
    assert code({}, inner="import outer\nVALUE = 2\n") != first


def test_the_package_counts_where_it_is_imported(code, kept, tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "one.py").write_text("A = 1\n")
    found = {}
    kept._follow("dalr_stream.errors", found)
    assert kept.PACKAGE / "network" / "surgery" / "compress.py" in found
    monkeypatch.setattr(kept, "PACKAGE", package)
    monkeypatch.setattr(sys.modules["dalr_stream"], "__file__", str(package / "one.py"))
    first = code({}, outer="import dalr_stream\ndef work(): ...\n")
    (package / "one.py").write_text("A = 2\n")
    assert code({}) != first


def test_figures_and_weights_are_made_once_for_a_digest(kept, tmp_path):
    made = []

    def measure():
        made.append(1)
        return {"value": len(made)}

    assert kept.kept_figures(tmp_path / "new", "aa", measure) == {"value": 1}
    assert kept.kept_figures(tmp_path / "new", "aa", measure) == {"value": 1}
    assert kept.kept_figures(tmp_path / "new", "bb", measure) == {"value": 2}

    def trained(digest, value):
        network = torch.nn.Linear(2, 1)
        kept.kept_weights(tmp_path, digest, {"net": network}, lambda: torch.nn.init.constant_(network.weight, value))
        return network.weight.mean().item()

    assert trained("aa", 1.0) == 1.0
    assert trained("aa", 5.0) == 1.0
    assert trained("bb", 5.0) == 5.0


def test_what_failed_half_way_is_not_kept(kept, tmp_path):
    def fail():
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        kept.kept_figures(tmp_path, "aa", fail)
    with pytest.raises(TypeError):
        kept.kept_figures(tmp_path, "aa", lambda: {"not": {"json"}})
    assert not list(tmp_path.iterdir())
