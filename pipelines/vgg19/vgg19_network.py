"""VGG19 in plain torch, with torchvision's names, so that the weights torchvision publishes load.

`features.N` and `classifier.N`; `classifier.0` is the papers' fc6, `classifier.3` their fc7, `classifier.6` their fc8.
The shape is an option, so that a test runs the same code on a network of a few thousand weights. Activations are not in
place: what a hook sees is what the layer gave.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 4, 4, 4)
"""Feature maps, and 3 x 3 convolutions, of each block; a block ends in 2 x 2 pooling (configuration E of VGG)."""
CLASSIFIER = "classifier.6"
"""The layer that is replaced for another domain's classes."""


class VGG(nn.Module):
    """Pictures (n, 3, side, side) to class scores (n, classes).

    Parameters
    ----------
    channels, convolutions
        One number a block.
    hidden
        Outputs of fc6 and of fc7.
    classes
        Outputs of fc8.
    pooled
        Side of the feature maps that fc6 reads, whatever the side of the pictures: 7 of 224 / 2^5.
    dropout
        Share of fc6 and fc7 units set to zero in training.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        convolutions: Sequence[int],
        hidden: int,
        classes: int,
        pooled: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*_blocks(channels, convolutions))
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self.classifier = nn.Sequential(
            nn.Linear(channels[-1] * pooled**2, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def flat(self, pictures: torch.Tensor) -> torch.Tensor:
        """Give what fc6 reads, (n, channels x pooled x pooled): constant where the convolutions are frozen."""
        return torch.flatten(self.avgpool(self.features(pictures)), 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Class scores; soft-max is the loss's."""
        scores: torch.Tensor = self.classifier(self.flat(pictures))
        return scores


def build(
    *,
    classes: int = 1000,
    channels: Sequence[int] = CHANNELS,
    convolutions: Sequence[int] = CONVOLUTIONS,
    hidden: int = 4096,
    pooled: int = 7,
    dropout: float = 0.5,
) -> VGG:
    """Build the network with weights that mean nothing yet, the same at every call; options as for `VGG`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VGG(
            channels=tuple(channels),
            convolutions=tuple(convolutions),
            hidden=hidden,
            classes=classes,
            pooled=pooled,
            dropout=dropout,
        )


def convolutions_of(model: VGG) -> tuple[int, ...]:
    """Return the number of convolutions in each block."""
    counts = [0]
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            counts[-1] += 1
        elif isinstance(layer, nn.MaxPool2d):
            counts.append(0)
    return tuple(counts[:-1])


def _blocks(channels: Sequence[int], convolutions: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for (before, after), count in zip(itertools.pairwise((3, *channels)), convolutions, strict=True):
        for number in range(count):
            layers += [nn.Conv2d(after if number else before, after, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return layers
