"""The reference: every key, verb, method and error is described, and the pages made from the code are up to date."""

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dalr_stream.cli.app import app
from dalr_stream.errors import ConfigError
from dalr_stream.numerics.methods import Method
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.keys import sections

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def generator():
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["python.md", "run-file.md", "errors.md", "command-line.md", "store-format.md"])
def test_a_page_is_what_the_code_says_now(name):
    remedy = "python docs/reference/generate.py"
    assert (REFERENCE / name).read_text(encoding="utf-8") == generator().page(name), remedy


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.name)
def test_every_key_says_what_it_means(section):
    assert section.meaning
    for key in section.keys:
        assert key.meaning, f"[{section.name}] {key.name}: write a string under the field"
        assert key.type
        assert key.default


def test_the_sections_are_those_of_a_run_file():
    tables = {section.name.partition(".")[0] for section in sections()}
    assert tables == set(RunConfig.model_fields)
    assert {section.name for section in sections("compress")} == {"compress", "compress.LAYER"}
    assert [section.name for section in sections("[domains]")] == ["domains.NAME"]
    with pytest.raises(ConfigError, match=r"there is no section \[captures\] in a run file; nearest: \[capture\]"):
        sections("captures")


def test_the_verb_prints_keys_and_json():
    shown = CliRunner().invoke(app, ["keys", "capture"])
    assert "[capture]" in shown.output
    assert "  most_patches: whole number, 16" in shown.output
    assert "[solve]" not in shown.output
    facts = json.loads(CliRunner().invoke(app, ["keys", "--json"]).stdout)
    (solve,) = [section for section in facts if section["name"] == "solve"]
    assert {"name": "methods", "type": "list of methods", "default": "all but heads and the weighted ones"}.items() <= (
        solve["keys"][0].items()
    )


def test_every_method_has_a_row():
    text = (REFERENCE / "methods.md").read_text(encoding="utf-8")
    assert [method for method in Method if f"| `{method.value}` |" not in text] == []
