"""Networks that give a picture one number, its quality: the slides' Shallow network, AlexNet and VGG16, by factory.

Shallow, on 227 x 227: three unpadded 3 x 3 convolutions of 32 maps, the first two pooled 4 x 4 (ceiling): 57, 14 and 12
pixels; a convolution over all that is left, and one dense layer. On smaller pictures that last convolution is smaller.
"""

from __future__ import annotations

import math

import torch
from torch import nn

MAPS = 32
POOL = 4


def build(*, factory: str = "shallow", side: int = 227) -> nn.Module:
    """Build a network for pictures of a side: (n, 3, side, side) to (n,)."""
    known = {"shallow": _shallow, "alexnet": _alexnet, "vgg16": _vgg16}
    if factory not in known:
        raise ValueError(f"factory: must be one of {', '.join(known)}, got {factory!r}")
    return known[factory](side)


class Squeezed(nn.Module):
    """One number for each picture, without a dimension for it."""

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """(n, 1) to (n,)."""
        return scores.squeeze(1)


def left_of(side: int) -> int:
    """Return the side of the maps that the Shallow network's last convolution covers."""
    for _ in range(2):
        side = math.ceil((side - 2 - POOL) / POOL) + 1
    return side - 2


def _shallow(side: int) -> nn.Sequential:
    last = left_of(side)
    if last < 1:
        raise ValueError(f"side: the Shallow network needs at least 43 pixels, got {side}")
    pool = nn.MaxPool2d(POOL, ceil_mode=True)
    return nn.Sequential(
        *(nn.Conv2d(3, MAPS, 3), nn.ReLU(), pool),
        *(nn.Conv2d(MAPS, MAPS, 3), nn.ReLU(), nn.MaxPool2d(POOL, ceil_mode=True)),
        *(nn.Conv2d(MAPS, MAPS, 3), nn.ReLU()),
        *(nn.Conv2d(MAPS, MAPS, last), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(MAPS, 1), Squeezed()),
    )


def _alexnet(side: int) -> nn.Sequential:
    del side  # pooled to 6 x 6 whatever it is
    features = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    ]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(6), nn.Flatten(), *_dense(256 * 36))


def _vgg16(side: int) -> nn.Sequential:
    del side
    features: list[nn.Module] = []
    before = 3
    for maps, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            features += [nn.Conv2d(before, maps, 3, padding=1), nn.ReLU()]
            before = maps
        features.append(nn.MaxPool2d(2))
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *_dense(512 * 49))


def _dense(inputs: int) -> list[nn.Module]:
    hidden = [nn.Linear(inputs, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return [*hidden, nn.Linear(4096, 1), Squeezed()]
