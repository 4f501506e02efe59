"""One run of the grouped network, for all tests of this folder."""

import sys

import pytest
from grouped_network import CODE, RUN_FILE, opened

from dalr_stream.workflow.run import Run


@pytest.fixture(scope="package", autouse=True)
def _forget_the_module():
    yield
    sys.modules.pop("grouped_run", None)


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped")
    (folder / "grouped_run.py").write_text(CODE)
    (folder / "run.toml").write_text(RUN_FILE)
    return folder


@pytest.fixture(scope="package")
def project(folder):
    project = opened(folder)
    Run(project).all()
    return project
