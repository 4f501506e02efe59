"""Every Python block of the pages that teach runs, in order."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("index.md", "tutorials/first-network.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    if "sklearn" in (text := (DOCS / page).read_text(encoding="utf-8")):
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, page, "exec"), names)  # noqa: S102  # the page is this project's own
    assert (tmp_path / "small" / "model.safetensors").exists()
    if page == "tutorials/first-network.md":
        printed = capsys.readouterr().out
        scores = [float(score) for score in re.findall(r"accuracy (\d+\.\d)%", printed)]
        assert len(scores) == 5
        assert min(scores) > 85


def test_every_link_between_pages_leads_somewhere():
    for page in DOCS.rglob("*.md"):
        for path in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), f"{page.name}: {path}"
