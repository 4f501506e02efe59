"""Handwritten digits on photographs, with jittered boxes as proposals: a detection set that needs no files.

The photographs are the two of scikit-learn, a third of each kept for the test pictures; the digits are scikit-learn's,
of the training split or the test split. A picture has one to three digits, not over one another, two to three times
their size; its proposals are boxes around each object, moved and stretched at random, and boxes anywhere.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch.nn import functional

from detection_scenes import Boxes, Scene, overlaps
from digit_files import handwritten

SIDE = 64
PROPOSALS, JITTERED = 48, 10
"""Boxes of a picture, and how many of them are around each object."""
MOST_OBJECTS = 3


def scenes(split: str, seed: int, count: int) -> list[Scene]:
    """Draw `train` or `test` pictures; the two share neither digits nor parts of photographs."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(("train", "test").index(split),)))
    digits = handwritten(split, seed)
    photographs = [_part(image.astype(np.float32) / 255, split) for image in load_sample_images().images]
    return [_drawn(rng, f"{split}{number}", photographs, digits.pixels, digits.labels) for number in range(count)]


def _part(image: np.ndarray, split: str) -> np.ndarray:
    cut = 2 * image.shape[1] // 3
    return image[:, :cut] if split == "train" else image[:, cut:]


def _drawn(
    rng: np.random.Generator, name: str, photographs: list[np.ndarray], pixels: np.ndarray, labels: np.ndarray
) -> Scene:
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (int(rng.integers(length - SIDE + 1)) for length in photograph.shape[:2])
    picture = photograph[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1).copy()
    boxes: list[Boxes] = []
    classes = []
    for number in rng.integers(len(labels), size=rng.integers(1, MOST_OBJECTS + 1)):
        size = int(rng.integers(16, 25))
        x, y = rng.integers(SIDE - size + 1, size=2)
        box = np.array([[x, y, x + size - 1, y + size - 1]], np.float32)
        if boxes and overlaps(box, np.concatenate(boxes)).any():
            continue
        ink = _larger(pixels[number], size)
        picture[:, y : y + size, x : x + size] *= 1 - ink
        boxes.append(box)
        classes.append(int(labels[number]) + 1)
    objects = np.concatenate(boxes)
    return Scene(
        name,
        lambda: torch.from_numpy((picture - 0.5) / 0.25),
        _proposals(rng, objects),
        objects,
        np.array(classes),
        np.zeros(len(objects), bool),
    )


def _larger(digit: np.ndarray, size: int) -> np.ndarray:
    found = functional.interpolate(torch.from_numpy(digit)[None, None], size=(size, size), mode="bilinear")
    return np.asarray(found[0, 0])


def _proposals(rng: np.random.Generator, objects: Boxes) -> Boxes:
    near = np.repeat(objects, JITTERED, axis=0)
    size = (near[:, 2:] - near[:, :2] + 1).mean(axis=1, keepdims=True)
    near = near + rng.normal(0.0, 0.12, near.shape) * size
    corner, sides = (
        rng.uniform(0, SIDE - 12, (PROPOSALS - len(near), 2)),
        rng.uniform(10, 34, (PROPOSALS - len(near), 2)),
    )
    boxes = np.concatenate([near, np.hstack([corner, corner + sides])]).clip(0, SIDE - 1)
    return np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2])], axis=1).astype(np.float32)
