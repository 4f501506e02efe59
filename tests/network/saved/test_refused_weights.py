"""Weights that the disk does not take leave the old ones and one line that names the path, whoever wrote them."""

import json
import os
import subprocess
import sys
from contextlib import chdir

import pytest
import safetensors.torch
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.checkpoint import save
from dalr_stream.network.saved.pickled import is_pickled
from dalr_stream.network.saved.pretrained import load_pretrained
from dalr_stream.network.saved.weights import load_weights, save_weights

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


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["weights.pth", "weights.bin"])
def test_pickled_weights_are_not_read_and_the_line_converts_them(tmp_path, name, legacy):
    net, path = nn.Linear(3, 2), tmp_path / name
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InvalidInputError, match=rf"{name}' is a file of torch.save, which is not read: conv") as told:
        load_weights(nn.Linear(3, 2), path)
    command = str(told.value).partition("with ")[2].rpartition(", and name that")[0]
    with chdir(tmp_path):
        eval(command, {"safetensors": safetensors, "torch": torch})  # noqa: S307  # what the message tells to type
    loaded = nn.Linear(3, 2)
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert torch.equal(loaded.weight, net.weight)


def test_a_folder_with_pickled_weights_alone_says_so(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(StoreNotFoundError, match=r"'pytorch_model.bin' there is not read: convert it once"):
        load_pretrained(nn.Linear(3, 2), tmp_path)


@pytest.mark.parametrize("header", [640, 0x8A0280])
def test_safetensors_are_not_taken_for_pickles(tmp_path, header):
    (tmp_path / "w").write_bytes(header.to_bytes(8, "little") + b" " * 8)
    assert not is_pickled(tmp_path / "w")


@pytest.mark.parametrize("write", [save, save_weights])
def test_a_state_that_is_no_tensor_is_named_before_anything_is_written(tmp_path, write):
    class Counted(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            assert state

    with pytest.raises(InvalidInputError, match=r"'0\._extra_state' of the network's state is a dict"):
        write(nn.Sequential(Counted(3, 2)), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


class Pretrained(nn.Linear):
    """A network whose class reads its own folders."""

    @classmethod
    def from_pretrained(cls, *_args, **_options):
        raise AssertionError("files beyond the folder would be read")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "..", ""])
def test_an_index_that_leads_out_of_its_folder_is_not_followed(name, tmp_path):
    index = {"metadata": {}, "weight_map": {"weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StoreDamagedError, match="which is not a file beside it"):
        load_pretrained(Pretrained(3, 2), tmp_path)
