"""Folding joint rows of two stores holds what the plan says, the tiles that joint ones are cut from included."""

from pathlib import Path

import pytest
from peak_pairs import increment_of_pair, projected_pair, tall_pair

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


def test_what_is_held_is_planned_and_little_less(tmp_path):
    tall_pair(tmp_path / "warm", (48, 16), 2)
    folder = tall_pair(tmp_path / "pair", (3072, 1024), 3)
    held = increment_of_pair(folder, 0.1)
    assert held <= projected_pair(folder, 0.1) <= 1.3 * held
