"""Mean average precision of PASCAL VOC 2007: eleven recalls, overlap 0.5, each object once, difficult ones free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection_scenes import Boxes, Scene, overlaps

OVERLAP = 0.5
RECALLS = np.arange(0.0, 1.1, 0.1)


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, of one class."""

    boxes: Boxes
    """(k, 4)"""
    scores: NDArray[np.float32]
    """(k,)"""


def mean_average_precision(scenes: Sequence[Scene], found: Sequence[Mapping[int, Detections]]) -> float:
    """Return the mean over the classes that occur; `found` has the detections of each scene by class."""
    classes = sorted({int(label) for scene in scenes for label in scene.classes[~scene.difficult]})
    return float(np.mean([average_precision(scenes, [one.get(label) for one in found], label) for label in classes]))


def average_precision(scenes: Sequence[Scene], found: Sequence[Detections | None], label: int) -> float:
    """Return the mean of the best precision at eleven recalls: 0, 0.1, ..., 1."""
    scores, right = _judged(scenes, found, label)
    objects = sum(int(((scene.classes == label) & ~scene.difficult).sum()) for scene in scenes)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / objects
    return float(np.mean([precision[recall >= at - 1e-9].max(initial=0.0) for at in RECALLS]))


def _judged(
    scenes: Sequence[Scene], found: Sequence[Detections | None], label: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the score of every detection that counts, and whether it is the first to find its object."""
    scores: list[float] = []
    right: list[bool] = []
    for scene, ours in zip(scenes, found, strict=True):
        if ours is None:
            continue
        mine = scene.classes == label
        objects, difficult = scene.objects[mine], scene.difficult[mine]
        taken = np.zeros(len(objects), dtype=bool)
        for number in np.argsort(-ours.scores, kind="stable"):
            best, overlap = _best(ours.boxes[number], objects)
            hit = overlap >= OVERLAP
            if hit and difficult[best]:
                continue
            scores.append(float(ours.scores[number]))
            right.append(bool(hit and not taken[best]))
            if hit:
                taken[best] = True
    return np.array(scores), np.array(right, dtype=bool)


def _best(box: Boxes, objects: Boxes) -> tuple[int, float]:
    if not len(objects):
        return -1, 0.0
    shared = overlaps(box[None], objects)[0]
    best = int(shared.argmax())
    return best, float(shared[best])
