"""A picture with what is in it and what was proposed: the one record that both data sets give and everything reads.

Boxes are x1, y1, x2, y2 in pixels, from 0, the last pixel included, as Fast R-CNN counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, its objects, and boxes in which objects may be."""

    name: str
    picture: Callable[[], torch.Tensor]
    """Gives (3, height, width)."""
    proposals: Boxes
    """(R, 4)"""
    objects: Boxes
    """(n, 4)"""
    classes: NDArray[np.int64]
    """(n,), from 1: 0 is the background."""
    difficult: NDArray[np.bool_]
    """(n,): found or not, they do not count."""


def overlaps(one: Boxes, other: Boxes) -> NDArray[np.float32]:
    """(n, k): intersection over union of every pair."""
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low + 1, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1) for boxes in (one, other)]
    return np.asarray(shared / (areas[0][:, None] + areas[1] - shared), dtype=np.float32)


def encode(proposals: Boxes, objects: Boxes) -> Boxes:
    """Return what a regressor must say to move each proposal onto its object (R-CNN, appendix C)."""
    centres, sizes = _centres(proposals)
    wanted, wanted_sizes = _centres(objects)
    return np.hstack([(wanted - centres) / sizes, np.log(wanted_sizes / sizes)]).astype(np.float32)


def decode(proposals: Boxes, moves: Boxes, height: int, width: int) -> Boxes:
    """Return proposals after these moves, cut to the picture."""
    centres, sizes = _centres(proposals)
    moved, half = centres + moves[:, :2] * sizes, (sizes * np.exp(np.clip(moves[:, 2:], None, 4.0)) - 1) / 2
    limits = np.array([width - 1, height - 1, width - 1, height - 1], np.float32)
    return np.clip(np.hstack([moved - half, moved + half]), 0, limits).astype(np.float32)


def _centres(boxes: Boxes) -> tuple[Boxes, Boxes]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2] + 1
