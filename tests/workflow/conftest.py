"""Runs of a run file, all quick ones."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick(quick):
    """Each module's runs sync nothing and draw empty pictures."""
