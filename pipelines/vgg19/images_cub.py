"""CUB-200-2011: 11,788 birds of 200 species, 5,994 to train on and 5,794 to test on, each with its bounding box.

    CUB_200_2011/images.txt                image id, path below images/
    CUB_200_2011/image_class_labels.txt    image id, class id from 1
    CUB_200_2011/train_test_split.txt      image id, 1 for training and 0 for testing
    CUB_200_2011/bounding_boxes.txt        image id, x, y, width, height in pixels
    CUB_200_2011/images/001.Black_footed_Albatross/*.jpg

The four tables are joined by image id, not by line. A few pictures are grey; they are shown as RGB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dalr_stream.errors import DatasetError
from images_batches import Picture
from images_layout import Counts, DataSet, Expected, require_file, table_of

NAME = "CUB-200-2011"
ROOT = "CUB_200_2011"
ARCHIVE = "CUB_200_2011.tgz"
OFFICIAL = Counts(train=5994, test=5794, classes=200)


def read(root: Path, expected: Expected = "official") -> DataSet:
    """Read the index files below ``root``."""
    paths = _by_image(root, "images.txt", 2)
    labels = _by_image(root, "image_class_labels.txt", 2)
    split = _by_image(root, "train_test_split.txt", 2)
    boxes = _by_image(root, "bounding_boxes.txt", 5)
    for other, table in {"image_class_labels": labels, "train_test_split": split, "bounding_boxes": boxes}.items():
        if table.keys() != paths.keys():
            raise DatasetError(f"{NAME}: {other}.txt and images.txt do not name the same images")
    images = sorted(paths)
    pictures = []
    for image in images:
        x, y, width, height = (float(number) for number in boxes[image])
        label = int(labels[image][0]) - 1
        pictures.append(Picture(root / "images" / paths[image][0], label, (x, y, width, height)))
    trains = np.array([split[image][0] == "1" for image in images])
    return DataSet(NAME, tuple(pictures), np.flatnonzero(trains), np.flatnonzero(~trains)).require(expected, OFFICIAL)


def _by_image(root: Path, file: str, columns: int) -> dict[int, list[str]]:
    lines = table_of(require_file(root / file, NAME, ARCHIVE), columns)
    table = {int(image): values for image, *values in lines}
    if len(table) != len(lines):
        raise DatasetError(f"{NAME}: {file} names {len(lines) - len(table)} images twice")
    return table
