"""Peak memory is what the plan says, and the same for many times the samples: measured in fresh processes."""

from functools import cache
from pathlib import Path

import pytest
from peak_direct import direct_peaks
from peak_memory import increment_of, projected, tall_store
from peak_solving import measured_of, planned, solved_store, solving_increment
from soaking import in_soak

from dalr_stream.numerics.methods import Method

WIDTH = 4096
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Return what a fold of so many tiles holds beyond what it began with; each is measured once."""
    root = tmp_path_factory.mktemp("stores")
    tall_store(root / "warm", 64, 2)
    return cache(lambda tiles, share: increment_of(tall_store(root / f"{tiles}-{share}", WIDTH, tiles), share=share))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return a store of a layer of some shape; each is made once."""
    root = tmp_path_factory.mktemp("solved")
    solved_store(root / "warm-solve", 16, 64, 300)
    return cache(lambda m, d, n, kept: solved_store(root / f"{m}-{d}-{n}", m, d, n, kept=kept))


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_what_is_held_is_planned_and_little_less(held, share):
    planned = projected(WIDTH, share=share)
    assert held(3, share) <= planned <= 1.3 * held(3, share)


@pytest.mark.parametrize("times", [4, *in_soak(16)])
def test_many_times_the_samples_take_no_more(held, times):
    """A tile is 32 MiB, 7 % of what is held: one that stays would show."""
    assert held(3 * times, 0.1) == pytest.approx(held(3, 0.1), rel=0.03)


def test_many_layers_folded_directly_hold_what_is_planned():
    """Batches are no multiple of a tile, so that parts of them are left over in every layer."""
    measured, planned = direct_peaks(512, 6, 2500, 16)
    assert measured <= planned <= 1.3 * measured


@pytest.mark.parametrize("shape", [(1024, 3072, 900, True), (2048, 512, 3000, True), (256, 3072, 3000, False)])
@pytest.mark.parametrize("name", ["dalr_optimal", "dalr_anchored_affine", "svd", "momasp_node"])
def test_solving_and_its_curves_hold_what_is_planned(stores, shape, name):
    outputs, inputs, rows, kept = shape
    measured = max(solving_increment(stores(*shape), name, what) for what in measured_of(Method(name)))
    assert measured <= planned(Method(name), outputs, inputs, rows, kept=kept) <= 1.5 * measured
