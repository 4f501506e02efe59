"""Weights that the disk does not take leave the old ones and one line that names the path, whoever wrote them."""

import os
import subprocess
import sys

import pytest
from torch import nn

from dalr_stream.network.saved.checkpoint import save
from dalr_stream.network.saved.weights import save_weights

SCRIPT = """
import resource, signal, sys
from pathlib import Path
import torch
from torch import nn
import dalr_stream as ds
from dalr_stream.errors import DiskSpaceError, StoreError
from dalr_stream.network.saved.checkpoint import save
from dalr_stream.network.saved.weights import save_weights

write = {"weights": save_weights, "network": save}[sys.argv[1]]
target = Path(sys.argv[2])
write(nn.Linear(4, 4), target)
before = {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    write(nn.Linear(400, 400), target)
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert before == {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
"""


@pytest.mark.parametrize("kind", ["weights", "network"])
def test_weights_that_the_disk_refuses_leave_the_old_ones_and_one_line(tmp_path, kind):
    target = tmp_path / "inner" / "kept"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", SCRIPT, kind, str(target)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=oct)
def test_a_networks_files_have_the_rights_that_the_umask_leaves(tmp_path, umask):

    before = os.umask(umask)
    try:
        save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "network")
        save_weights(nn.Linear(3, 2), tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
