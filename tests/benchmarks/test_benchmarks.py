"""Every benchmark runs, at tiny sizes, where the figures mean nothing."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(*arguments):
    command = [sys.executable, str(HERE), *arguments]
    wide = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide)  # noqa: S603  # this folder


def test_every_section_prints_its_table():
    done = run("--quick")
    assert done.returncode == 0, done.stderr
    for words in (
        "dsyrk in memory",
        "sklearn IncrementalPCA",
        "forward + dsyrk",
        "forward, backward, both products",
        "planned / measured",
        "busiest rank",
        "dalr_optimal_affine",
        "find all up to date, by batches",
        "MoMaSP subset, first 8",
        "ResNet-50",
        "a script that keeps the states between blocks",
    ):
        assert words in done.stdout


def test_an_unknown_section_is_named():
    done = run("memroy")
    assert done.returncode == 2
    assert "no section memroy" in done.stderr
