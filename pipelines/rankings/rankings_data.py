"""Ranked pictures from the photographs that ship with scikit-learn, and scores for some of them.

A ranked set is one patch of a photograph under one distortion, at levels 0 (as it is) to 5. Training patches are of
the left two thirds of the photographs, test patches of the right third. Opinions of people come with LIVE
(`rankings_live`); here the structural similarity to the original stands in for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from rankings_distortions import DISTORTIONS, LEVELS, Pixels, similarity

SIDE = 64


@dataclass(frozen=True, slots=True)
class Ranked:
    """Sets of pictures of falling quality."""

    pictures: torch.Tensor
    """(sets, 6, 3, side, side): as it is, then levels 1 to 5."""
    scores: torch.Tensor
    """(sets, 6): structural similarity, 1 for the picture as it is."""
    kinds: tuple[str, ...]
    """The distortion of each set."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Pictures with scores, each seen in one or several crops; higher is better."""

    crops: torch.Tensor
    """(n, crops, 3, side, side)"""
    scores: torch.Tensor
    """(n,)"""


def ranked(split: str, seed: int, originals: int, side: int = SIDE) -> Ranked:
    """Draw `train` or `test` patches, and distort each in all four ways."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(("train", "test").index(split),)))
    photographs = [_part(image, split) for image in load_sample_images().images]
    sets, scores, kinds = [], [], []
    for _ in range(originals):
        patch = _patch(photographs[rng.integers(len(photographs))], side, rng)
        for kind, distort in DISTORTIONS.items():
            pictures = [patch, *(distort(patch, level, rng) for level in range(1, LEVELS + 1))]
            sets.append(torch.stack([as_input(one) for one in pictures]))
            scores.append([similarity(patch, one) for one in pictures])
            kinds.append(kind)
    return Ranked(torch.stack(sets), torch.tensor(scores, dtype=torch.float32), tuple(kinds))


def as_input(pixels: Pixels) -> torch.Tensor:
    """(3, height, width), about -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 127.5 - 1


def _part(image: NDArray[np.uint8], split: str) -> Pixels:
    cut = 2 * image.shape[1] // 3
    return image[:, :cut] if split == "train" else image[:, cut:]


def _patch(photograph: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]
