"""Beside a real process that captures: a second writer is refused, a reader sees committed rows and changes nothing."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.errors import StoreLockedError, StoreNotFoundError
from dalr_stream.storage.removal import delete_activations, forget_domain
from dalr_stream.storage.store import ActivationStore

NETWORK = """
import torch
from torch import nn
import dalr_stream as ds

model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
model.eval()
layers = ds.network.select_layers(model, ["*"])

def batch(number):
    return torch.randn(70, 40, 6, generator=torch.Generator().manual_seed(number))
"""
WRITER = """
def batches():
    for number in range(20):
        print(number, flush=True)
        if number % 5 == 2:
            input()
        yield batch(number)

ds.capture(model, batches(), layers, sys.argv[1], domain="target")
"""
READER = """
from dalr_stream.storage.store import ActivationStore

expected = np.concatenate([batch(number).reshape(-1, 6).numpy() for number in range(20)])
seen = []
while True:
    store = ActivationStore(sys.argv[1])
    record = store.manifest.domains.get("target")
    if record is not None:
        tiles = [store.read_tile("target", "0", tile).rows for tile in range(store.tiles("target", "0"))]
        rows = np.concatenate(tiles)
        assert len(rows) == record.layers["0"].rows and np.array_equal(rows, expected[: len(rows)])
        assert record.layers["2"].rows <= len(expected)
        seen.append(len(rows))
        if record.complete:
            break
    print("read", flush=True)
assert seen == sorted(seen) and seen[-1] == len(expected) == 20 * 70 * 40
print(len(set(seen)), flush=True)
"""


def process(script, root):
    code = "import sys\nimport numpy as np\n" + textwrap.dedent(NETWORK) + textwrap.dedent(script)
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(running, line):
    while (found := running.stdout.readline()) != f"{line}\n":
        assert found, running.stderr.read()


@pytest.fixture
def writer(tmp_path):
    """A process that captures, and stops to wait for a line before each commit or two."""
    with process(WRITER, tmp_path / "store") as running:
        read_until(running, 2)
        yield running
        running.kill()


def go_on(running, until):
    running.stdin.write("\n")
    running.stdin.flush()
    read_until(running, until)


def test_every_second_writer_is_refused_and_the_first_goes_on(writer, tmp_path):
    root = tmp_path / "store"
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "writer.lock"}
    model = torch.nn.Sequential(torch.nn.Linear(6, 4)).eval()
    layers = ds.network.select_layers(model, ["*"])

    def capture():
        ds.capture(model, [torch.zeros(1, 6)], layers, root, domain="source")

    for write in (capture, lambda: forget_domain(root, "target"), lambda: delete_activations(root)):
        with pytest.raises(StoreLockedError, match=r"store' is being written by another process: wait for it"):
            write()
    assert {path: path.read_bytes() for path in before} == before
    for number in (7, 12, 17):
        go_on(writer, number)
    writer.communicate("\n")
    assert writer.returncode == 0
    assert ActivationStore(root).domain("target").complete
    delete_activations(root)  # the lock went with its holder


def test_a_reading_process_beside_the_writer_sees_committed_rows_only(writer, tmp_path):
    root = tmp_path / "store"
    with process(READER, root) as reader:
        for number in (7, 12, 17):
            read_until(reader, "read")
            go_on(writer, number)
        read_until(reader, "read")
        writer.communicate("\n")
        said, wrong = reader.communicate()
    assert (writer.returncode, reader.returncode) == (0, 0), wrong
    assert int(said.splitlines()[-1]) >= 2
    alone = tmp_path / "alone"
    with process(WRITER, alone) as running:
        _, wrong = running.communicate("\n" * 4)
    assert running.returncode == 0, wrong
    assert contents(alone) == contents(root)


def test_a_store_that_is_being_made_is_not_there_or_whole(tmp_path):
    with pytest.raises(StoreNotFoundError):
        ActivationStore(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def contents(root: Path):
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "writer.lock")
    return {path.relative_to(root): path.read_bytes() for path in files}


def test_the_numbers_of_the_writing_process_are_those_of_this_one(tmp_path):
    """The rows are read back here bit for bit as the data were made there."""
    root = tmp_path / "store"
    with process(WRITER, root) as running:
        _, wrong = running.communicate("\n" * 4)
    assert running.returncode == 0, wrong
    rows = ActivationStore(root).read_tile("target", "0", 0).rows
    assert np.array_equal(
        rows[:2800], torch.randn(70, 40, 6, generator=torch.Generator().manual_seed(0)).reshape(-1, 6)
    )
