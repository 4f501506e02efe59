"""Stanford 40 Actions: 9,532 pictures of 40 actions, 100 of each to train on, 5,532 to test on.

    Stanford40/JPEGImages/applauding_001.jpg              (Stanford40_JPEGImages.zip)
    Stanford40/ImageSplits/applauding_train.txt, applauding_test.txt    (Stanford40_ImageSplits.zip)

Each split file lists file names. Actions are numbered in the order of their names; the two files that list every
picture (`train.txt`, `test.txt`) and `actions.txt` are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dalr_stream.errors import DatasetError
from images_batches import Picture
from images_layout import Counts, DataSet, Expected, require_file, table_of

NAME = "Stanford 40 Actions"
ROOT = "Stanford40"
OFFICIAL = Counts(train=4000, test=5532, classes=40)


def read(root: Path, expected: Expected = "official") -> DataSet:
    """Read the split files below ``root``."""
    splits = require_file(root / "ImageSplits", NAME, "Stanford40_ImageSplits.zip")
    require_file(root / "JPEGImages", NAME, "Stanford40_JPEGImages.zip")
    actions = sorted(path.name.removesuffix("_train.txt") for path in splits.glob("*_train.txt"))
    if not actions:
        raise DatasetError(f"{NAME}: '{splits}' holds no file such as applauding_train.txt")
    pictures: list[Picture] = []
    trains: list[bool] = []
    for label, action in enumerate(actions):
        for split in ("train", "test"):
            listing = require_file(splits / f"{action}_{split}.txt", NAME, "Stanford40_ImageSplits.zip")
            names = [name for (name,) in table_of(listing, 1)]
            pictures += [Picture(root / "JPEGImages" / name, label) for name in names]
            trains += [split == "train"] * len(names)
    marks = np.array(trains)
    found = DataSet(NAME, tuple(pictures), np.flatnonzero(marks), np.flatnonzero(~marks))
    return found.require(expected, OFFICIAL)
