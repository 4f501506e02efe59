"""The networks of MoMaSP's section 4: a feature generator of three convolutions and a dense layer, and a classifier.

Maximum classifier discrepancy trains one generator under two classifiers of two layers; the network that is compressed
is the generator with the first of them. Channels and widths are our own: the paper's supplement is not at hand. Nearly
all parameters are in the dense layers, so that compressing these alone reaches the paper's 96 to 98.5 %.
"""

from __future__ import annotations

import torch
from torch import nn

from adaptation_data import side_of

CHANNELS = (12, 8, 16)
WIDTH = 512
CLASSES = 10
READER = {"conv1": "conv2", "conv2": "conv3", "conv3": "fc1", "fc1": "fc2", "fc2": "fc3"}
"""Who reads the nodes of each layer that has some to select."""


class AdaptationNetwork(nn.Module):
    """Pictures (n, 1, side, side) to class scores; `generate` gives the features that the classifiers share."""

    def __init__(self, side: int, channels: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.side = side
        first, second, third = channels
        self.conv1 = nn.Conv2d(1, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        # Pictures of 8 are halved once and pictures of 32 three times: 4 x 4 are left.
        self.pool1 = nn.MaxPool2d(2) if side == 32 else nn.Identity()
        self.pool2 = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2) if side == 32 else nn.Identity()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(third * 16, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, CLASSES)

    def generate(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features (n, width), after the nonlinearity."""
        maps = self.pool1(torch.relu(self.conv1(pictures)))
        maps = self.pool2(torch.relu(self.conv2(maps)))
        maps = self.pool3(torch.relu(self.conv3(maps)))
        return torch.relu(self.fc1(self.flatten(maps)))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Class scores; soft-max is the loss's."""
        scores: torch.Tensor = self.fc3(torch.relu(self.fc2(self.generate(pictures))))
        return scores

    def reset_weights(self) -> None:
        """Draw all weights anew from torch's global generator: He initialisation, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)


def build(
    *, source: str, target: str, channels: tuple[int, int, int] = CHANNELS, width: int = WIDTH
) -> AdaptationNetwork:
    """Build the network for a pair of data sets, untrained; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second, third = channels
        network = AdaptationNetwork(side_of(source, target), (first, second, third), width)
        network.reset_weights()
        return network
