"""Stores that several modules begin with."""

import pytest
from stores import Killed, batches_of, capture, rows_for, small_tiles, unsynced


@pytest.fixture(scope="module")
def quick_stores():
    """Tiles of few rows, and no waiting for the disk."""
    with small_tiles(), unsynced():
        yield


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """A new folder at each call: hypothesis asks for many in one test."""
    return lambda: tmp_path_factory.mktemp("store")


@pytest.fixture
def half(tmp_path):
    """A store that was stopped after 7 of 10 batches of 10."""
    with pytest.raises(Killed):
        capture(tmp_path, batches_of(rows_for(100), [10]), stop_after=7)
    return tmp_path


@pytest.fixture
def full(tmp_path):
    capture(tmp_path, batches_of(rows_for(100), [10]))
    return tmp_path
