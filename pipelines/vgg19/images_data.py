"""The factories that run files name: `target_train`, `target_validation`, `target_test` and `source`.

    [domains.target]
    batches = "images_data:target_train"
    options = { dataset = "cub", samples = 4000 }

The invariant that keeps the numbers honest: for one seed and one `validation`, the training pictures, the validation
pictures and the test pictures are disjoint, and `validation` comes out of the training split, never out of the test
split. Draws are by seed, each use from a random stream of its own.
"""

from __future__ import annotations

import enum
from typing import Literal

import numpy as np

import images_actions
import images_cub
import images_flowers
import images_imagenet
from dalr_stream.errors import DatasetError
from images_batches import SIDE, ImageBatches, Normalise, Picture, Resize, Shown
from images_layout import DATA, DataSet, Expected, Rows, pictures_in, require_file

READERS = {"cub": images_cub, "flowers": images_flowers, "actions": images_actions, "imagenet": images_imagenet}

Validation = int | Literal["official"]


class Draw(enum.IntEnum):
    """What is drawn by the seed: each draw has its own random stream."""

    VALIDATION = 0
    SAMPLES = 1
    SOURCE = 2
    ORDER = 3


def target_train(  # noqa: PLR0913 - each is an option of the run file
    *,
    dataset: str,
    seed: int,
    root: str | None = None,
    samples: int | None = None,
    per_class: int | None = None,
    validation: Validation = 0,
    boxes: bool = False,
    shuffled: bool = False,
    batch_size: int = 50,
    side: int = SIDE,
    resize: str = Resize.CROP,
    normalise: str = Normalise.SPREAD,
    threads: int | None = None,
    expect: Expected = "official",
) -> ImageBatches:
    """Give the training pictures.

    Parameters
    ----------
    dataset
        `cub`, `flowers`, `actions` or `imagenet`.
    seed
        Decides `samples`, `validation` and the order of `shuffled`.
    root
        Folder of the data set; relative to the project's `data` folder, where it has a place of its own.
    samples
        Draw so many, each class in its proportion, for the statistics; by default all.
    per_class
        Draw so many of each class instead.
    validation
        So many are left to `target_validation`, each class in its proportion; or `official`, the data set's own.
    boxes
        Show each picture a second time, cut to its bounding box: the augmentation of the DALR paper (section 5.1).
    shuffled
        Give them in an order drawn once, the same at every pass: what frozen layers make of a batch stays the same.
    batch_size, threads
        As `ImageBatches` takes them.
    side, resize, normalise
        As `Shown` takes them.
    expect
        The counts that must be found: `official`, or a table of `train`, `test` and `classes`.
    """
    found = _read(dataset, root, expect)
    rows = np.setdiff1d(found.train, _validation_rows(found, seed, validation), assume_unique=True)
    if samples is not None:
        rows = _drawn(found, rows, samples, seed, Draw.SAMPLES, "samples")
    if per_class is not None:
        rows = _drawn_of_each(found, rows, per_class, seed)
    pictures = [found.pictures[row] for row in rows]
    if boxes and any(picture.box is None for picture in pictures):
        raise DatasetError(f"{found.name}: 'boxes' asks for bounding boxes, and it has none: leave it out")
    listed = [*map(_whole, pictures), *(pictures if boxes else ())]
    if shuffled:
        listed = [listed[number] for number in _stream(seed, Draw.ORDER).permutation(len(listed))]
    return ImageBatches(tuple(listed), batch_size, Shown(side, resize, normalise), threads)


def target_validation(  # noqa: PLR0913 - each is an option of the run file
    *,
    dataset: str,
    seed: int,
    validation: Validation,
    root: str | None = None,
    batch_size: int = 50,
    side: int = SIDE,
    resize: str = Resize.CROP,
    normalise: str = Normalise.SPREAD,
    threads: int | None = None,
    expect: Expected = "official",
) -> ImageBatches:
    """Give the pictures that `target_train` with the same seed and ``validation`` leaves out; the same options."""
    found = _read(dataset, root, expect)
    rows = _validation_rows(found, seed, validation)
    return ImageBatches(_whole_pictures(found, rows), batch_size, Shown(side, resize, normalise), threads)


def target_test(  # noqa: PLR0913 - each is an option of the run file
    *,
    dataset: str,
    seed: int,
    root: str | None = None,
    batch_size: int = 50,
    side: int = SIDE,
    resize: str = Resize.CROP,
    normalise: str = Normalise.SPREAD,
    threads: int | None = None,
    expect: Expected = "official",
) -> ImageBatches:
    """Give the official test pictures, all of them: nothing is drawn by ``seed``. Options as for `target_train`."""
    del seed
    found = _read(dataset, root, expect)
    return ImageBatches(_whole_pictures(found, found.test), batch_size, Shown(side, resize, normalise), threads)


def source(  # noqa: PLR0913 - each is an option of the run file
    *,
    seed: int,
    root: str = images_imagenet.ROOT,
    samples: int = 4000,
    batch_size: int = 50,
    side: int = SIDE,
    resize: str = Resize.CROP,
    normalise: str = Normalise.SPREAD,
    threads: int | None = None,
) -> ImageBatches:
    """Give ``samples`` pictures drawn from a folder of class folders (ILSVRC2012's train) or of pictures (its val).

    Where the folder has both as folders `train` and `val`, they are drawn from `train`. Labels number the class folders
    in the order of their names; they are -1 where there are none.
    """
    folder = require_file(DATA / root, "source pictures", "ILSVRC2012_img_val.tar or ILSVRC2012_img_train.tar")
    inner = next((folder / name for name in ("train", "val") if (folder / name).is_dir()), folder)
    classes = images_imagenet.class_folders(inner)
    named = enumerate(classes) if classes else [(-1, inner)]
    pictures = [Picture(path, label) for label, place in named for path in pictures_in(place)]
    if len(pictures) < samples:
        raise DatasetError(
            f"source pictures: '{inner}' holds {len(pictures):,} and {samples:,} are asked for: add pictures, or "
            "lower the loader's option 'samples'"
        )
    rows = np.sort(_stream(seed, Draw.SOURCE).choice(len(pictures), samples, replace=False))
    return ImageBatches(tuple(pictures[row] for row in rows), batch_size, Shown(side, resize, normalise), threads)


def _read(dataset: str, root: str | None, expect: Expected) -> DataSet:
    if dataset not in READERS:
        raise DatasetError(f"dataset: must be one of {', '.join(READERS)}, got '{dataset}'")
    reader = READERS[dataset]
    return reader.read(DATA / (root or reader.ROOT), expect)


def _validation_rows(found: DataSet, seed: int, validation: Validation) -> Rows:
    if validation == "official":
        if found.validation is None:
            raise DatasetError(f"{found.name}: it has no validation split of its own: give 'validation' a number")
        return found.validation
    return _drawn(found, found.train, validation, seed, Draw.VALIDATION, "validation")


def _drawn(found: DataSet, rows: Rows, count: int, seed: int, use: Draw, option: str) -> Rows:
    """Give ``count`` of the rows, each class in its proportion, ascending."""
    if not 0 <= count <= len(rows):
        raise DatasetError(f"{found.name}: '{option}' must lie in 0..{len(rows):,}, got {count:,}")
    labels, rng = found.labels[rows], _stream(seed, use)
    place = np.empty(len(rows))  # of each row in its class, in 0..1: the first of every class come first
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.sort(rows[np.argsort(place, kind="stable")[:count]])


def _drawn_of_each(found: DataSet, rows: Rows, count: int, seed: int) -> Rows:
    """Give ``count`` of the rows of each class, ascending."""
    labels, rng = found.labels[rows], _stream(seed, Draw.SAMPLES)
    classes, sizes = np.unique(labels, return_counts=True)
    if not 1 <= count <= sizes.min():
        raise DatasetError(f"{found.name}: 'per_class' must lie in 1..{sizes.min()}, its smallest class, got {count}")
    drawn = [rng.choice(np.flatnonzero(labels == label), count, replace=False) for label in classes]
    return np.sort(rows[np.concatenate(drawn)])


def _stream(seed: int, use: Draw) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use.value,)))


def _whole(picture: Picture) -> Picture:
    return Picture(picture.path, picture.label)


def _whole_pictures(found: DataSet, rows: Rows) -> tuple[Picture, ...]:
    return tuple(_whole(found.pictures[row]) for row in rows)
