"""The script that sets layer after layer beside all at once, on a small stack."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

DIGITS_FOLDER = Path(__file__).parents[2] / "pipelines" / "digits"


@pytest.fixture
def gain(monkeypatch):
    monkeypatch.syspath_prepend(DIGITS_FOLDER)
    return importlib.import_module("sequential_gain")


def test_the_table_holds_what_was_measured_and_full_rank_loses_nothing(gain):
    case = gain.trained_stack(0, samples=200, width=16, depth=3, epochs=2)
    assert case.layers == ("1", "3")
    assert case.last == "5"
    assert len(case.train.labels) == 200
    dalr = gain.METHODS[0]
    with torch.inference_mode(), pytest.warns(UserWarning, match="parameters"):
        full = [make(case, dalr)(16) for make in (gain.at_once, gain.in_turn)]
    assert all(gain.judged(case, small).error < 1e-5 for small in full)
    before, now = (gain.judged(case, make(case, dalr)(4)) for make in (gain.at_once, gain.in_turn))
    assert 0.0 < now.error < 1.0
    lines = gain.table([case], [4]).splitlines()
    assert lines[0].startswith("| 2 of 3 dense layers: ")
    better = int(now.error < before.error)
    assert lines[2].endswith(
        f"| {100 * before.accuracy:.1f} %, {before.error:.3f} | {100 * now.accuracy:.1f} %, {now.error:.3f} "
        f"| {better} of 1 |"
    )
