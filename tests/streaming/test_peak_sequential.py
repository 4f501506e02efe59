"""Compressing layer after layer holds what its passes are planned to hold, and keeps to a limit: in fresh processes."""

from pathlib import Path

import pytest
from peak_sequential import MIB, in_turn_peaks

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
BLOCKS = 256, 3, 1000, 16
"""Width, blocks, and samples of each batch."""


def test_what_is_held_is_planned_and_little_less():
    measured, planned = in_turn_peaks(*BLOCKS, 0)
    assert measured <= planned <= 1.4 * measured


def test_with_a_limit_less_is_kept_between_the_passes_and_it_holds():
    limit = 560
    measured, planned = in_turn_peaks(*BLOCKS, limit)
    assert measured <= planned <= limit * MIB
