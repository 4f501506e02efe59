"""Oxford 102 Flowers: 8,189 pictures of 102 species; train and val, 1,020 each, are trained on, as both papers do.

    oxford-102-flowers/jpg/image_00001.jpg ... image_08189.jpg    (102flowers.tgz)
    oxford-102-flowers/imagelabels.mat     labels, (1, n) class ids from 1
    oxford-102-flowers/setid.mat           trnid, valid, tstid: (1, n) image ids from 1

The data set's own `valid` is kept as the validation split: `validation = "official"` takes it out of training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from dalr_stream.errors import DatasetError
from images_batches import Picture
from images_layout import Counts, DataSet, Expected, Rows, require_file

NAME = "Oxford 102 Flowers"
ROOT = "oxford-102-flowers"
OFFICIAL = Counts(train=2040, test=6149, classes=102)


def read(root: Path, expected: Expected = "official") -> DataSet:
    """Read the index files below ``root``."""
    labels = _numbers(root, "imagelabels.mat", "labels") - 1
    train, validation, test = (_numbers(root, "setid.mat", key) - 1 for key in ("trnid", "valid", "tstid"))
    parts = np.concatenate([train, validation, test])
    if not np.array_equal(np.sort(parts), np.arange(len(labels))):
        raise DatasetError(f"{NAME}: setid.mat must name each of the {len(labels):,} pictures of imagelabels.mat once")
    require_file(root / "jpg", NAME, "102flowers.tgz")
    pictures = tuple(Picture(root / "jpg" / f"image_{n:05d}.jpg", int(label)) for n, label in enumerate(labels, 1))
    both = np.sort(np.concatenate([train, validation]))
    return DataSet(NAME, pictures, both, np.sort(test), np.sort(validation)).require(expected, OFFICIAL)


def _numbers(root: Path, file: str, key: str) -> Rows:
    table = loadmat(require_file(root / file, NAME, file))
    if key not in table:
        raise DatasetError(f"{NAME}: '{root / file}' holds no '{key}'")
    numbers: Rows = np.asarray(table[key], dtype=np.int64).ravel()
    return numbers
