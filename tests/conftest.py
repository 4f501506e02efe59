"""Puts this folder on the path (`oracles`, `strategies`) and frees hypothesis of its stopwatch: machines are shared.

`make test` draws the same examples every time, so it fails when the code is wrong and never by luck; `make soak` draws
new ones (`--hypothesis-profile=soak`), and everything that is sampled in `make test` is done in full: the `soak`
fixture says which it is.
"""

import pytest
from hypothesis import HealthCheck, settings

KIND = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("soak", **KIND)
settings.register_profile("test", derandomize=True, **KIND)
settings.load_profile("test")


@pytest.fixture(scope="session")
def soak(request):
    """Tell whether this is `make soak`: every crash, every failure, hundreds of kills."""
    return request.config.getoption("--hypothesis-profile") == "soak"


@pytest.fixture
def cuda():
    """A CUDA device; where torch sees none the test is skipped, and says so."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    return torch.device("cuda")
