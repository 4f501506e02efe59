"""Stores that independent jobs captured, and tiles small enough for a test."""

import os

import pytest
from capture_jobs import PARTS, job

from dalr_stream.numerics.rows import tiling


@pytest.fixture(scope="module", autouse=True)
def _quick(quick):
    """Each module's runs sync nothing and draw empty pictures."""


@pytest.fixture(scope="module")
def low_tiles():
    """Tiles of 256 rows at any width, so that 1,500 rows are six of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "MAX_TILE_ROWS", 256)
        yield


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    """Four stores that nothing may change."""
    folder = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        return {part: job(folder / f"{part}.zarr", part) for part in PARTS}


@pytest.fixture
def jobs_as_they_were(jobs, contents):
    """Sources are only read: every test ends with the bytes it began with."""
    found = {part: contents(root) for part, root in jobs.items()}
    yield
    assert {part: contents(root) for part, root in jobs.items()} == found
