"""The map in CONTRIBUTING.md: each question leads to a file that is there and to a name that it defines."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| `(dalr_stream/[^`]+)` \| (?:`([\w.]+)`)? ?\|", TEXT, re.MULTILINE)


def defined(body):
    """Names that a module or a class defines, those of a class's members as `Class.member`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in defined(node.body))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_it_answers_what_a_stranger_asks():
    asked = [question for question, _, _ in ROWS]
    assert len(asked) >= 20
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize(("question", "path", "name"), ROWS)
def test_the_file_is_there_and_defines_the_name(question, path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert not name or name in set(defined(tree.body)), f"{question}: '{path}' does not define {name}"


def test_every_ring_is_described():
    rings = {path.parent.name for path in (ROOT / "dalr_stream").glob("*/__init__.py")}
    described = set(re.findall(r"^    (\w+)/  ", TEXT, re.MULTILINE))
    assert described == rings


def test_every_other_place_it_names_is_there():
    for path in re.findall(
        r"`((?:tests|engine|storage|workflow|network|numerics|pipelines|lowrank|selection)/[\w/.]*)`", TEXT
    ):
        inside = ROOT / "dalr_stream" / path
        assert any(place.exists() for place in (ROOT / path, inside, ROOT / "dalr_stream/numerics" / path)), path


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "developing").glob("*.md")), ids=lambda page: page.stem)
def test_every_file_that_a_page_for_developers_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b((?:dalr_stream|tests|docs)/[\w/.-]*\w)", text):
        assert (ROOT / path).exists(), path


def test_functions_that_the_page_about_layers_names_are_there():
    text = (ROOT / "docs" / "developing" / "kind-of-layer.md").read_text(encoding="utf-8")
    kinds = ast.parse((ROOT / "dalr_stream" / "network" / "layers" / "kinds.py").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| [^|]+\? \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 7
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= set(defined(kinds.body))


def test_each_file_in_changes_is_of_a_kind_that_the_changelog_has():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]
    kinds = "|".join(kind["directory"] for kind in settings["type"])
    assert settings["filename"] == "CHANGELOG.md"
    for path in (ROOT / "changes").glob("*.md"):
        assert path.name == "README.md" or re.fullmatch(rf"\+?[\w.-]+\.({kinds})\.md", path.name), path.name
        assert path.read_text(encoding="utf-8").strip()
