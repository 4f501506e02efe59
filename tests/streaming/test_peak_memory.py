"""Peak memory is what the plan says, and the same for many times the samples: measured in fresh processes."""

from functools import cache
from pathlib import Path

import pytest
from peak_memory import increment_of, projected, tall_store
from soaking import in_soak

WIDTH = 4096
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Return what a fold of so many tiles holds beyond what it began with; each is measured once."""
    root = tmp_path_factory.mktemp("stores")
    tall_store(root / "warm", 64, 2)
    return cache(lambda tiles, share: increment_of(tall_store(root / f"{tiles}-{share}", WIDTH, tiles), share=share))


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_what_is_held_is_planned_and_little_less(held, share):
    planned = projected(WIDTH, share=share)
    assert held(3, share) <= planned <= 1.3 * held(3, share)


@pytest.mark.parametrize("times", [4, *in_soak(16)])
def test_many_times_the_samples_take_no_more(held, times):
    """A tile is 32 MiB, 7 % of what is held: one that stays would show."""
    assert held(3 * times, 0.1) == pytest.approx(held(3, 0.1), rel=0.03)
