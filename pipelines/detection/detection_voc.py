"""PASCAL VOC 2007 in its official layout, with the selective-search boxes that Fast R-CNN was published with.

    root/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt, test.txt    VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar
    root/VOCdevkit/VOC2007/Annotations/*.xml, JPEGImages/*.jpg
    root/selective_search_data/voc_2007_trainval.mat, ..._test.mat  selective_search_data.tgz of fast-rcnn

The boxes are MATLAB's: y1, x1, y2, x2, from 1. Pictures are RGB less ImageNet's mean, the shorter side 600 pixels and
the longer one at most 1,000, as in Fast R-CNN; boxes are scaled with them.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat

from dalr_stream.errors import DatasetError
from detection_scenes import Scene

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COUNTS = {"trainval": 5011, "test": 4952}
MEAN = (123.680, 116.779, 103.939)
SHORTER, LONGEST = 600, 1000
LEAST_PROPOSAL = 20
"""Fast R-CNN leaves smaller boxes out, in pixels of the picture on disk."""


def read(root: Path, split: str, *, count: int | None = None) -> list[Scene]:
    """Read `trainval` or `test`; raises DatasetError that names what is missing, or does not go together.

    `count` is how many pictures there must be; by default as many as there are officially.
    """
    folder = root / "VOCdevkit" / "VOC2007"
    names = _there(folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    wanted = COUNTS[split] if count is None else count
    if len(names) != wanted:
        raise DatasetError(f"VOC 2007: '{split}.txt' names {len(names):,} pictures where there are {wanted:,}")
    boxes = _proposals(_there(root / "selective_search_data" / f"voc_2007_{split}.mat"))
    missing = [name for name in names if name not in boxes]
    if missing:
        raise DatasetError(
            f"VOC 2007: 'voc_2007_{split}.mat' has no boxes for {len(missing):,} pictures, the first is '{missing[0]}'"
        )
    return [_scene(folder, name, boxes[name]) for name in names]


def _proposals(path: Path) -> dict[str, NDArray[np.number]]:
    """Return the boxes of each picture, by its name."""
    content = loadmat(path)
    names, boxes = (np.ravel(content[key]) for key in ("images", "boxes"))
    return {str(np.ravel(name)[0]): found for name, found in zip(names, boxes, strict=True)}


def _scene(folder: Path, name: str, found: NDArray[np.number]) -> Scene:
    path = _there(folder / "JPEGImages" / f"{name}.jpg")
    tree = ET.parse(_there(folder / "Annotations" / f"{name}.xml"))  # noqa: S314 - the data set's own files
    width, height = (int(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    scale = min(SHORTER / min(width, height), LONGEST / max(width, height))
    proposals = found[:, [1, 0, 3, 2]].astype(np.float32) - 1
    large = (proposals[:, 2:] - proposals[:, :2] + 1 >= LEAST_PROPOSAL).all(axis=1)
    objects = tree.findall("object")
    corners = [[_number(one, f"bndbox/{key}") - 1 for key in ("xmin", "ymin", "xmax", "ymax")] for one in objects]
    return Scene(
        name,
        lambda: as_input(path, scale),
        proposals[large] * np.float32(scale),
        np.array(corners, np.float32).reshape(-1, 4) * np.float32(scale),
        np.array([CLASSES.index(one.findtext("name", "")) + 1 for one in objects], np.int64),
        np.array([one.findtext("difficult") == "1" for one in objects], bool),
    )


def as_input(path: Path, scale: float) -> torch.Tensor:
    """Read a picture; (3, height, width)."""
    with Image.open(path) as image:
        size = tuple(round(side * scale) for side in image.size)
        pixels = np.asarray(image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BILINEAR), np.float32)
    return torch.from_numpy(np.ascontiguousarray((pixels - np.float32(MEAN)).transpose(2, 0, 1)))


def _number(element: ET.Element, key: str) -> float:
    return float(element.findtext(key, "1"))


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DatasetError(f"VOC 2007: there is no '{path}': unpack the official archives (data/README.md shows where)")
    return path
