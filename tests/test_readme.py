import re
from pathlib import Path

import pytest

from dalr_stream import Method
from dalr_stream.workflow.runfile.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_session_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in session.splitlines() if line.strip()]) <= 20
    names = {}
    exec(compile(session, "README.md", "exec"), names)  # noqa: S102  # the session is this project's own
    assert names["small"](names["batches"][0]).shape == (64, 10)
    assert (tmp_path / "small" / "model.safetensors").exists()
    assert names["errors"][64] < names["errors"][1]


def test_the_session_of_the_page_about_the_engine_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "explanation" / "statistics.md").read_text(encoding="utf-8")
    names = {}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "statistics.md", "exec"), names)  # noqa: S102
    assert len(names["both"].shards) == 2
    assert len(names["without"].shards) == 1
    assert "target (1,200 samples, 1 layer, 1 with moments)" in capsys.readouterr().out


def test_the_session_of_the_page_about_gradients_runs():
    page = (ROOT / "docs" / "explanation" / "gradients.md").read_text(encoding="utf-8")
    names = {}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "gradients.md", "exec"), names)  # noqa: S102
    layer = names["layer"]
    assert layer.gradients.second_moment.shape == (48, 48)
    assert layer.gradients.count == 2 * layer.inputs.count
    assert names["small"].rank == 8


def test_the_session_of_the_page_about_the_solvers_runs(capsys):
    page = (ROOT / "docs" / "explanation" / "solvers.md").read_text(encoding="utf-8")
    names = {}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "solvers.md", "exec"), names)  # noqa: S102
    assert "enough" in capsys.readouterr().out
    assert names["errors"].shape == (49,)
    one, other = (names[name].errors(names["layer"].inputs)[8] for name in ("factors", "same"))
    assert abs(other / one - 1) < 0.1
    assert names["first"].max_rank == 8
    assert len(names["swept"]) == 2
    assert names["chosen"].ridge.is_relative


def test_the_session_of_the_page_about_networks_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "explanation" / "networks.md").read_text(encoding="utf-8")
    names = {}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "networks.md", "exec"), names)  # noqa: S102
    small = names["small"]
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (10, 10, 10)
    assert small[6][0].in_features == 64 * small[3].out_channels
    assert (tmp_path / "small" / "plan.json").exists()
    assert names["times"].layers


def test_the_session_of_the_page_about_trust_prints_what_the_page_says(capsys):
    page = (ROOT / "docs" / "explanation" / "trust.md").read_text(encoding="utf-8")
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "trust.md", "exec"), {})  # noqa: S102
    said, printed = (re.findall(r"(\d\.\d+)", text) for text in (page.partition("prints")[2], capsys.readouterr().out))
    errors = [float(number) for number in printed]
    assert len(errors) == 4
    assert [float(number) for number in said[:4]] == pytest.approx(
        errors, abs=0.01
    )  # BLAS and torch differ in last bits


def test_the_run_file_of_the_readme_is_one(tmp_path):
    """Nothing but keys that are there was tested once, and MoMaSP, a default, asked for a domain that it has not."""
    (tmp_path / "run.toml").write_text(re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1])
    methods = load_config(tmp_path / "run.toml").solve.methods
    assert Method.DALR_ANCHORED_AFFINE in methods
    assert not any(method.needs_source for method in methods)
    assert any(
        method.needs_source for method in load_config(tmp_path / "run.toml", ["solve.source=target"]).solve.methods
    )


def test_every_file_and_command_the_readme_names_exists():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", README))
    assert {"demo", "test"} <= named <= targets
