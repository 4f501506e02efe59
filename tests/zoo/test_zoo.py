"""Architectures that people bring: each column of the table in docs/results/architectures.md is proved here again."""

import logging
import re
from pathlib import Path

import pytest
from zoo import ARCHITECTURES, IN_EVERY_TEST_RUN
from zoo_proofs import prove, reloaded

PAGE = Path(__file__).parents[2] / "docs" / "results" / "architectures.md"
CASES = [
    pytest.param(name, marks=() if name in IN_EVERY_TEST_RUN else pytest.mark.soak, id=name) for name in ARCHITECTURES
]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)  # transformers says which kernels it lacks
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", CASES)
def test_what_the_table_says_is_so(name, tmp_path, soak):
    found = prove(ARCHITECTURES[name], tmp_path, exports=soak)
    assert not found.errors
    assert found.watched + len(found.refused) >= found.layers
    assert all("\n" not in reason and "Error" not in reason for reason in found.refused.values())
    assert not any("failed (" in reason for reason in found.unprunable.values())
    if (tmp_path / "outputs.pt").exists():
        assert reloaded(ARCHITECTURES[name], tmp_path) == 0.0


def test_the_page_shows_every_architecture_and_nothing_that_is_wrong():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[1:]] == list(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 60
    assert not [line for line in lines if re.search(r"ERROR|inf", line)]
    assert len(IN_EVERY_TEST_RUN) * 10 >= len(ARCHITECTURES)
