"""Fast R-CNN: convolutions over the whole picture, RoI pooling, fc6 and fc7 for each box, classes and moves.

Plain torch. A picture's boxes are rows of one sample: (n, R, d), so fc6 and fc7 see R rows a picture. By factory
`small`, three convolutions and a stride of 4, or `vgg16`, thirteen and a stride of 16 as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Feature maps of the convolutions; 0 is pooling, the last of VGG16's five left out for RoI pooling."""
SMALL = (16, 0, 32, 0, 48)


class FastRCNN(nn.Module):
    """Pictures (n, 3, height, width) and boxes (n, R, 4) to class scores (n, R, classes + 1) and moves, 4 a class."""

    def __init__(self, layers: Sequence[int], pooled: int, width: int, classes: int) -> None:
        super().__init__()
        self.features, maps = _features(layers)
        self.stride, self.pooled = 2 ** list(layers).count(0), pooled
        self.fc6, self.fc7 = nn.Linear(maps * pooled**2, width), nn.Linear(width, width)
        self.classes, self.moves = nn.Linear(width, classes + 1), nn.Linear(width, 4 * (classes + 1))

    def forward(self, pictures: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score and move every box; soft-max is the loss's."""
        pooled = roi_pool(self.features(pictures), boxes, self.stride, self.pooled)
        hidden = torch.relu(self.fc7(torch.relu(self.fc6(pooled.flatten(2)))))
        return self.classes(hidden), self.moves(hidden)


def roi_pool(maps: torch.Tensor, boxes: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """Return the largest value in each of side x side parts of every box: (n, R, C, side, side).

    Fast R-CNN's: corners are rounded to the maps' grid, both ends included; part i of h rows is from floor(i h / side)
    to ceil((i + 1) h / side).
    """
    height, width = maps.shape[-2:]
    corners = torch.round(boxes / stride).long()
    found = []
    for picture, own in zip(maps, corners.tolist(), strict=True):
        cut = []
        for x1, y1, x2, y2 in own:
            left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
            right, bottom = max(min(x2, width - 1), left), max(min(y2, height - 1), top)
            cut.append(functional.adaptive_max_pool2d(picture[:, top : bottom + 1, left : right + 1], side))
        found.append(torch.stack(cut))
    return torch.stack(found)


def build(*, factory: str = "small", classes: int = 10, width: int | None = None) -> FastRCNN:
    """Build the network, untrained; `width` of fc6 and fc7 is 256 (`small`) or 4,096 (`vgg16`)."""
    known = {"small": (SMALL, 4, 256), "vgg16": (VGG16, 7, 4096)}
    if factory not in known:
        raise ValueError(f"factory: must be {' or '.join(map(repr, known))}, got {factory!r}")
    layers, pooled, own = known[factory]
    return FastRCNN(layers, pooled, width or own, classes)


def _features(layers: Sequence[int]) -> tuple[nn.Sequential, int]:
    parts: list[nn.Module] = []
    before = 3
    for maps in layers:
        if maps:
            parts += [nn.Conv2d(before, maps, 3, padding=1), nn.ReLU()]
            before = maps
        else:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts), before
