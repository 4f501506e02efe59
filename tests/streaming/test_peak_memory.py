"""Peak memory is what the plan says, and the same for sixteen times the samples: measured in fresh processes."""

from pathlib import Path

import pytest
from peak_memory import increment_of, projected, tall_store

WIDTH = 4096
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    tall_store(root / "warm", 64, 2)
    return {tiles: tall_store(root / f"{tiles}", WIDTH, tiles) for tiles in (3, 48)}


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_what_is_held_is_planned_and_little_less(stores, share):
    held, planned = increment_of(stores[3], share=share), projected(WIDTH, share=share)
    assert held <= planned <= 1.3 * held


def test_sixteen_times_the_samples_take_no_more(stores):
    assert increment_of(stores[48], share=0.1) == pytest.approx(increment_of(stores[3], share=0.1), rel=0.03)
