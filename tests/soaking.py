"""Cases that repeat a proof at another place: `make soak` runs them all, `make test` those that are not marked."""

import pytest


def in_soak(*cases):
    """Return the cases as parameters for `make soak` alone; a case of several parameters is a tuple."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.soak) for case in cases]
