"""The networks of MoMaSP's section 4: a feature generator of three convolutions and a dense layer, and a classifier.

Maximum classifier discrepancy trains one generator under two classifiers of two layers; the network that is compressed
is the generator with the first of them. As in MCD's own networks, batch norm follows every layer but the last.
Channels and widths are ours: the paper's supplement is not at hand.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

from adaptation_data import side_of

CHANNELS = (16, 32, 32)
WIDTH = 1024
CLASSES = 10
HALVED = {8: (2,), 32: (1, 2, 3)}
"""After which convolutions pictures of a side are halved: 4 x 4 are left."""


class AdaptationNetwork(nn.Module):
    """Pictures (n, 1, side, side) to class scores; both classifiers read the generator's features (n, width)."""

    def __init__(self, side: int, channels: tuple[int, int, int], width: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (inputs, outputs) in enumerate(pairwise((1, *channels)), start=1):
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU()
            if number in HALVED[side]:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        self.generator = nn.Sequential(layers | _dense("1", channels[-1] * 16, width))
        self.classifier = nn.Sequential(_dense("2", width, width) | {"fc3": nn.Linear(width, CLASSES)})

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Class scores; soft-max is the loss's."""
        scores: torch.Tensor = self.classifier(self.generator(pictures))
        return scores


def reset(network: nn.Module) -> None:
    """Draw all weights anew from torch's global generator, each module in its own way."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()


def build(
    *, source: str, target: str, root: str | None = None, channels: tuple[int, int, int] = CHANNELS, width: int = WIDTH
) -> AdaptationNetwork:
    """Build the network for a pair of data sets, untrained; the global random state is left as it was."""
    del root
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second, third = channels
        return AdaptationNetwork(side_of(source, target), (first, second, third), width)


def _dense(number: str, inputs: int, outputs: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        {
            f"fc{number}": nn.Linear(inputs, outputs, bias=False),
            f"fc{number}_norm": nn.BatchNorm1d(outputs),
            f"fc{number}_relu": nn.ReLU(),
        }
    )
