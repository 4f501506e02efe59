"""Training Fast R-CNN on scenes, and finding objects with it (Girshick, ICCV 2015, sections 2.3 and 3).

A step takes some pictures and of each as many boxes, at most a quarter of them on objects (overlap of at least 0.5);
the others are background (0.1 to 0.5, or less where there are too few). The loss is cross-entropy, and smooth L1 of the
moves of boxes on objects. Detections of a class are thinned by non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from detection_map import Detections
from detection_network import FastRCNN
from detection_scenes import Boxes, Scene, decode, encode, overlaps

ON_OBJECTS, LEAST = 0.5, 0.1
FOREGROUND = 0.25
SPREAD = (0.1, 0.1, 0.2, 0.2)
"""By which moves are divided, so that the regressor's targets have about unit spread."""
SUPPRESSED, LEAST_SCORE = 0.3, 0.05


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and on what; a step's boxes are of each of its pictures."""

    epochs: int = 10
    pictures: int = 2
    boxes: int = 24
    learning_rate: float = 1e-3


def batches(scenes: Sequence[Scene], pictures: int = 1) -> Iterator[tuple[dict[str, torch.Tensor], list[Scene]]]:
    """Yield all boxes of so many pictures at a time, as the network takes them; sizes and numbers must agree."""
    for start in range(0, len(scenes), pictures):
        group = list(scenes[start : start + pictures])
        inputs = {
            "pictures": torch.stack([scene.picture() for scene in group]),
            "boxes": torch.from_numpy(np.stack([scene.proposals for scene in group])),
        }
        yield inputs, group


@dataclass(frozen=True, slots=True)
class SceneBatches:
    """The same as a loader that starts again at every `for`."""

    scenes: Sequence[Scene]
    pictures: int = 1

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], list[Scene]]]:
        return batches(self.scenes, self.pictures)


def train(model: FastRCNN, scenes: Sequence[Scene], *, seed: int, recipe: Recipe) -> None:
    """Train in place; the starting weights are those it has."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    steps = recipe.epochs * -(-len(scenes) // recipe.pictures)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    model.train()
    for _ in range(recipe.epochs):
        order = [scenes[number] for number in rng.permutation(len(scenes))]
        for start in range(0, len(order), recipe.pictures):
            group = order[start : start + recipe.pictures]
            losses = [_loss(model, scene, _drawn(scene, recipe.boxes, rng)) for scene in group]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()
            optimiser.step()
            falling.step()
    model.eval()


def _drawn(scene: Scene, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw boxes for a step: on objects first, then background, those near objects before others."""
    best = overlaps(scene.proposals, scene.objects).max(axis=1, initial=0.0)
    on = rng.permutation(np.flatnonzero(best >= ON_OBJECTS))[: max(int(count * FOREGROUND), 1)]
    near = rng.permutation(np.flatnonzero((best < ON_OBJECTS) & (best >= LEAST)))
    far = rng.permutation(np.flatnonzero(best < LEAST))
    return np.concatenate([on, near, far])[:count]


def _loss(model: FastRCNN, scene: Scene, drawn: NDArray[np.int64]) -> torch.Tensor:
    proposals = scene.proposals[drawn]
    shared = overlaps(proposals, scene.objects)
    best = shared.argmax(axis=1)
    labels = np.where(shared.max(axis=1) >= ON_OBJECTS, scene.classes[best], 0)
    scores, moves = model(scene.picture()[None], torch.from_numpy(proposals)[None])
    loss = functional.cross_entropy(scores[0], torch.from_numpy(labels))
    on = np.flatnonzero(labels)
    if on.size:
        wanted = encode(proposals[on], scene.objects[best[on]]) / np.float32(SPREAD)
        said = moves[0].unflatten(-1, (-1, 4))[torch.from_numpy(on), torch.from_numpy(labels[on])]
        loss = loss + functional.smooth_l1_loss(said, torch.from_numpy(wanted), reduction="sum") / len(drawn)
    return loss


def detect(model: nn.Module, scene: Scene) -> dict[int, Detections]:
    """Return what the network finds in a picture, by class."""
    inputs, _ = next(batches([scene]))
    with torch.inference_mode():
        scores, moves = model(**inputs)
    shares = scores[0].softmax(dim=1).numpy()
    moved = moves[0].unflatten(-1, (-1, 4)).numpy() * np.float32(SPREAD)
    height, width = inputs["pictures"].shape[-2:]
    found = {}
    for label in range(1, shares.shape[1]):
        kept = np.flatnonzero(shares[:, label] >= LEAST_SCORE)
        boxes = decode(scene.proposals[kept], moved[kept, label], height, width)
        stay = suppress(boxes, shares[kept, label])
        found[label] = Detections(boxes[stay], shares[kept, label][stay])
    return found


def suppress(boxes: Boxes, scores: NDArray[np.float32]) -> list[int]:
    """Return the boxes that stay, best first: none overlaps a better one by more than 0.3."""
    left, stay = list(np.argsort(-scores, kind="stable")), []
    while left:
        best, *rest = left
        stay.append(int(best))
        shared = overlaps(boxes[[best]], boxes[rest])[0] if rest else ()
        left = [other for other, overlap in zip(rest, shared, strict=True) if overlap <= SUPPRESSED]
    return stay
