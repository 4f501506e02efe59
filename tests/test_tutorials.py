"""The pages that teach: their Python runs in order, their run files have keys that there are, links lead somewhere."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from test_reference import generator

DOCS = Path(__file__).parents[1] / "docs"
TAUGHT = sorted(
    path.relative_to(DOCS).as_posix()
    for path in (DOCS / "index.md", *DOCS.glob("tutorials/*.md"), *DOCS.glob("how-to/*.md"))
    if "```python" in path.read_text(encoding="utf-8")
)
NEEDS = {"sklearn": "sklearn", "from transformers": "transformers", "import xarray": "xarray"}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", TAUGHT)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    code = blocks(page, "python")
    for word, module in NEEDS.items():
        if any(word in block for block in code):
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in code:
        exec(compile(block, page, "exec"), names)  # noqa: S102  # the page is this project's own
    if page.startswith("tutorials/") or page == "index.md":
        assert (tmp_path / "small" / "model.safetensors").exists()
    if page == "tutorials/first-network.md":
        printed = capsys.readouterr().out
        scores = [float(score) for score in re.findall(r"accuracy (\d+\.\d)%", printed)]
        assert len(scores) == 5
        assert min(scores) > 85


def test_every_tutorial_and_task_has_code_to_run_or_a_command():
    for page in (*DOCS.glob("tutorials/*.md"), *DOCS.glob("how-to/*.md")):
        text = page.read_text(encoding="utf-8")
        assert "```python" in text or "```toml" in text or "    dalr-stream " in text, page.name


@pytest.mark.parametrize("page", [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))])
def test_parts_of_run_files_name_keys_that_there_are(page):
    from dalr_stream.workflow.runfile.keys import sections

    known = {section.name: {key.name for key in section.keys} for section in sections()}
    for block in blocks(page, "toml"):
        for section, keys in tomllib.loads(block).items():
            if section in known and section not in {"compress", "domains"}:
                assert set(keys) <= known[section], f"{page}: [{section}]"


def test_every_link_between_pages_leads_somewhere():
    for page in DOCS.rglob("*.md"):
        for path in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), f"{page.name}: {path}"


def test_the_notebook_is_the_page_as_cells_and_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    path = DOCS / "tutorials" / "first-network.ipynb"
    assert path.read_text(encoding="utf-8") == generator().notebook(), "python docs/reference/generate.py"
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec"), names)  # noqa: S102  # this project's own
    assert "a fifth of the weights: accuracy" in capsys.readouterr().out
