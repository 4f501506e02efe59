"""Tiny data sets in the official layouts: a few pictures of 32 to 48 pixels, and index files as the real ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = 3
CUB = {"train": 12, "test": 9, "classes": CLASSES}
FLOWERS = {"train": 15, "test": 6, "classes": CLASSES}
ACTIONS = {"train": 12, "test": 6, "classes": CLASSES}
IMAGENET = {"train": 14, "test": 9, "classes": CLASSES}


def picture(path: Path, label: int, seed: int, *, grey: bool = False) -> None:
    """Save a noisy picture, each class in a colour of its own; every size differs a little."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (36 + seed % 5, 40 + seed % 3, 3), dtype=np.uint8)
    pixels[..., label % 3] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert("L") if grey else image).save(path)


def cub(root: Path) -> Path:
    """21 birds: classes 1 to 3, of each the first four for training; ids out of order, one grey picture."""
    tables: dict[str, list[str]] = {
        "images": [],
        "image_class_labels": [],
        "train_test_split": [],
        "bounding_boxes": [],
    }
    for label in range(CLASSES):
        for number in range(7):
            image, name = label * 7 + number + 1, f"{label + 1:03d}.Bird_{label}/Bird_{number:04d}.jpg"
            picture(root / "images" / name, label, image, grey=number == 2)
            tables["images"].append(f"{image} {name}")
            tables["image_class_labels"].append(f"{image} {label + 1}")
            tables["train_test_split"].append(f"{image} {int(number < 4)}")
            tables["bounding_boxes"].append(f"{image} 5.0 4.0 20.0 {24.0 + number}")
    for number, (name, lines) in enumerate(tables.items()):
        (root / f"{name}.txt").write_text("\n".join(lines[number:] + lines[:number]) + "\n")
    return root


def flowers(root: Path) -> Path:
    """21 flowers: of each class three of train, two of val, two of test."""
    labels = np.arange(21) % CLASSES
    for number, label in enumerate(labels, 1):
        picture(root / "jpg" / f"image_{number:05d}.jpg", int(label), number)
    savemat(root / "imagelabels.mat", {"labels": (labels + 1)[None].astype(np.uint8)})
    ids = np.arange(1, 22, dtype=np.uint16)
    savemat(root / "setid.mat", {"trnid": ids[None, 12:], "valid": ids[None, :6], "tstid": ids[None, 6:12]})
    return root


def actions(root: Path) -> Path:
    """18 pictures: of each action four for training, two for testing."""
    splits = root / "ImageSplits"
    splits.mkdir(parents=True)
    for label, action in enumerate(("applauding", "riding_a_bike", "writing_on_a_book")):
        names = [f"{action}_{number:03d}.jpg" for number in range(1, 7)]
        for number, name in enumerate(names):
            picture(root / "JPEGImages" / name, label, 10 * label + number)
        (splits / f"{action}_train.txt").write_text("\n".join(names[:4]) + "\n")
        (splits / f"{action}_test.txt").write_text("\n".join(names[4:]) + "\n")
    (splits / "train.txt").write_text("every picture\n")
    (splits / "actions.txt").write_text("action_name number_of_images\n")
    return root


def source(root: Path) -> Path:
    """12 pictures in two class folders."""
    for number in range(12):
        wnid = f"n0144076{number % 2}"
        picture(root / wnid / f"{wnid}_{number}.JPEG", number % 3, 50 + number)
    return root


def imagenet(root: Path) -> Path:
    """Class folders of 4, 5 and 5 pictures, and a flat validation folder whose labels the devkit numbers otherwise."""
    ids = ("n01440764", "n01443537", "n02119789")
    numbers = {"n02119789": 1, "n01440764": 2, "n01443537": 3}
    for label, wnid in enumerate(ids):
        for number in range(4 + (label > 0)):
            picture(root / "train" / wnid / f"{wnid}_{number}.JPEG", label, 70 + 10 * label + number)
    labels = [2, 0, 1, 1, 2, 0, 0, 1, 2]
    for number, label in enumerate(labels, 1):
        picture(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", label, 200 + number)
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    truth = "".join(f"{numbers[ids[label]]}\n" for label in labels)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    synsets = np.empty((4, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    for row, (wnid, number) in enumerate([*numbers.items(), ("n00001740", 1001)]):
        synsets[row, 0] = (np.array([[number]], np.uint16), wnid, np.array([[0]], np.uint8))
    savemat(devkit / "meta.mat", {"synsets": synsets})
    return root
