"""Weights that the run file names are known by their bytes: size and time of change can be those of other weights."""

import os
import sys

import numpy as np
import pytest
from tiny_run_file import write_run

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.saved.files import INDEX, weights_files
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps import train
from dalr_stream.workflow.steps.fingerprints import file_print

FEW = 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]'


@pytest.fixture
def given(tmp_path):
    """A run of weights that a first run trained, whole to the moments."""
    trained = Run.open(write_run(tmp_path / "first"), set=[FEW])
    trained.train()
    file = write_run(tmp_path / "tiny")
    (file.parent / "w.safetensors").write_bytes(trained.project.weights.read_bytes())
    file.write_text(file.read_text().replace('train = "tiny_run:train"', 'weights = "w.safetensors"'))
    opened(file).accumulate()
    return file


def opened(file, *overrides):
    sys.modules.pop("tiny_run", None)
    return Run.open(file, set=[FEW, *overrides])


def replaced(path):
    """Other numbers under the same size, time of change and name, as `rsync -t` and `cp -p` leave them."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    numbers = 8 + int.from_bytes(data[:8], "little")  # what comes before them is a header of safetensors
    data[numbers:] = (-np.frombuffer(data[numbers:], np.float32)).tobytes()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_weights_replaced_under_the_same_size_and_time_are_others(given):
    before = train.made_from(opened(given).project)
    replaced(given.parent / "w.safetensors")
    run = opened(given)
    assert train.made_from(run.project) != before
    with pytest.raises(FingerprintMismatchError, match="was made from the network with fingerprint"):
        run.accumulate()


def test_the_same_bytes_of_another_time_are_the_same(given):
    before = train.made_from(opened(given).project)
    os.utime(given.parent / "w.safetensors", ns=(1, 1))
    assert train.made_from(opened(given).project) == before


def test_a_file_that_is_replaced_in_the_same_process_is_read_again_and_an_unchanged_one_is_not(tmp_path, monkeypatch):
    path, reads = tmp_path / "w", []
    path.write_bytes(b"one")
    first = file_print(path, "network.weights")
    monkeypatch.setattr("dalr_stream.workflow.steps.fingerprints.file_digest", reads.append)
    assert file_print(path, "network.weights") == first
    assert not reads
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    file_print(path, "network.weights")
    assert reads == [path]


def test_every_part_of_weights_in_several_files_counts(tmp_path):
    names = [INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in [*names, "model.safetensors", "config.json"]:
        (tmp_path / name).write_text(name)
    assert [path.name for path in weights_files(tmp_path)] == names
    (tmp_path / INDEX).unlink()
    assert [path.name for path in weights_files(tmp_path)] == ["model.safetensors"]
    assert weights_files(tmp_path / "w.safetensors") == [tmp_path / "w.safetensors"]
