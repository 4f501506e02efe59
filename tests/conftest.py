"""Puts this folder on the path (`oracles`, `strategies`), makes tiny runs, and frees hypothesis of its stopwatch.

`make test` draws the same examples every time, so it fails when the code is wrong and never by luck; `make soak` draws
new ones (`--hypothesis-profile=soak`), and everything that is sampled in `make test` is done in full: the `soak`
fixture says which it is, and cases marked `soak` (`soaking.in_soak`) run there alone.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before torch is loaded: OpenMP's threads otherwise spin while they wait, at the cost of the other tests' threads. A
# small network trained beside ten busy processes on two cores took 102 s, and 7 s so.

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tiny_run_file import write_run

KIND = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("soak", **KIND)
settings.register_profile("test", derandomize=True, **KIND)
settings.load_profile("test")


def pytest_collection_modifyitems(config, items):
    """Leave cases that are marked so to `make soak`."""
    if not is_soak(config):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("soak")])
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def is_soak(config):
    return config.getoption("--hypothesis-profile") == "soak"


@pytest.fixture(scope="session")
def soak(request):
    """Tell whether this is `make soak`: every crash, every failure, hundreds of kills."""
    return is_soak(request.config)


@pytest.fixture
def cuda():
    """A CUDA device; where torch sees none the test is skipped, and says so."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    return torch.device("cuda")


@contextmanager
def quick_runs():
    """Let a run sync nothing and draw empty pictures: half of what a tiny one costs, and no result of it.

    Syncing decides what a power cut leaves; `tests/report` and `tests/pipelines` draw in earnest.
    """
    from matplotlib.figure import Figure

    from dalr_stream.report.pictures import plots

    figures = ("activation_rates", "reconstruction_errors", "score_against_pair", "score_against_layer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for name in (*figures, "spectra", "retention"):
            patch.setattr(plots, name, lambda *_: Figure())
        yield


@pytest.fixture(scope="module")
def quick():
    """For a module whose tests run a run file again and again: see `quick_runs`."""
    with quick_runs():
        yield


@pytest.fixture(autouse=True)
def _imported_from_there_goes_with_the_folder(tmp_path_factory):
    """A module that a test's run file imported would hide the one of the same name beside the next test's.

    Which tests come before a test in its process depends on how busy the machine is.
    """
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in sys.modules.copy().items():
        if str(getattr(module, "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory):
    """A run done once for the session; tests work on copies of it."""
    from dalr_stream.workflow.run import Run
    from dalr_stream.workflow.runfile.config import load_config
    from dalr_stream.workflow.runfile.project import Project

    path = write_run(tmp_path_factory.mktemp("finished") / "tiny")
    with quick_runs():
        Run(Project(load_config(path), path.parent)).all()
    sys.modules.pop("tiny_run", None)
    return path.parent


@pytest.fixture
def run_file(tmp_path):
    """The run file of a tiny run of which nothing is done yet."""
    return write_run(tmp_path / "tiny")


@pytest.fixture
def finished_file(tmp_path, finished_folder):
    """The run file of a tiny run that is done."""
    shutil.copytree(finished_folder, tmp_path / "done")
    return tmp_path / "done" / "run.toml"


@pytest.fixture
def contents():
    """Return every file below a folder with its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read


@pytest.fixture
def unsynced(monkeypatch):
    """Syncing decides what a power cut leaves, and tests cut no power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
