"""ImageNet (ILSVRC2012) as a data set to evaluate on: class folders to train, the flat archive to validate.

    root/train/n01440764/*.JPEG, ...                      ILSVRC2012_img_train.tar, each class's own archive unpacked
    root/val/ILSVRC2012_val_00000001.JPEG, ...            ILSVRC2012_img_val.tar, or class folders as in train
    root/ILSVRC2012_devkit_t12/data/                      ILSVRC2012_devkit_t12.tar.gz: the labels of a flat val

Labels number the classes by their WordNet id in ascending order, as torchvision's VGG19 does. The devkit numbers them
otherwise: `meta.mat` says which id each of its numbers stands for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from dalr_stream.errors import DatasetError
from images_batches import Picture
from images_layout import Counts, DataSet, Expected, pictures_in, require_file

NAME = "ImageNet"
ROOT = "ILSVRC2012"
DEVKIT = "ILSVRC2012_devkit_t12"
OFFICIAL = Counts(train=1_281_167, test=50_000, classes=1000)
WORDNET = re.compile(r"n\d{8}")


def read(root: Path, expected: Expected = "official") -> DataSet:
    """Read the folders below ``root``."""
    train = require_file(root / "train", NAME, "ILSVRC2012_img_train.tar, each class in a folder")
    labels = {folder.name: number for number, folder in enumerate(class_folders(train))}
    shown = _in_folders(train, labels)
    val = require_file(root / "val", NAME, "ILSVRC2012_img_val.tar")
    tested = _in_folders(val, labels) if class_folders(val) else _flat(val, root / DEVKIT, labels)
    first, count = len(shown), len(shown) + len(tested)
    return DataSet(NAME, (*shown, *tested), np.arange(first), np.arange(first, count)).require(expected, OFFICIAL)


def class_folders(folder: Path) -> list[Path]:
    """Return the folders that are named by a WordNet id, ascending."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and WORDNET.fullmatch(path.name))


def _in_folders(folder: Path, labels: Mapping[str, int]) -> list[Picture]:
    unknown = [path.name for path in class_folders(folder) if path.name not in labels]
    if unknown:
        raise DatasetError(f"{NAME}: '{folder}' has a class '{unknown[0]}' that 'train' has not")
    return [Picture(path, labels[place.name]) for place in class_folders(folder) for path in pictures_in(place)]


def _flat(folder: Path, devkit: Path, labels: Mapping[str, int]) -> list[Picture]:
    """Give the pictures of one folder, ascending, with the devkit's labels in that order."""
    pictures = pictures_in(folder)
    archive = f"{DEVKIT}.tar.gz"
    truth = require_file(devkit / "data" / "ILSVRC2012_validation_ground_truth.txt", NAME, archive)
    numbers = [int(number) for number in truth.read_text().split()]
    if len(numbers) != len(pictures):
        raise DatasetError(f"{NAME}: '{folder}' holds {len(pictures):,} pictures and '{truth}' {len(numbers):,} labels")
    wordnet = _wordnet_ids(require_file(devkit / "data" / "meta.mat", NAME, archive))
    strange = next((number for number in numbers if wordnet.get(number) not in labels), None)
    if strange is not None:
        raise DatasetError(f"{NAME}: '{truth}' names class {strange}, which has no folder in 'train'")
    return [Picture(path, labels[wordnet[number]]) for path, number in zip(pictures, numbers, strict=True)]


def _wordnet_ids(meta: Path) -> dict[int, str]:
    """Return the WordNet id of each number of the devkit."""
    synsets = loadmat(meta, struct_as_record=False).get("synsets", ())
    return {int(np.ravel(one.ILSVRC2012_ID)[0]): str(np.ravel(one.WNID)[0]) for one in np.ravel(synsets)}
