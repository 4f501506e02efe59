"""Networks deeper than that of `run.toml`, trained on handwritten digits: a stack of dense layers, a residual net.

Trained within seconds, so they are not kept: the same weights for the same seed, on one machine with one number of
threads. The global random state is left as it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from labelled_batches import Batches

BATCH, LEARNING_RATE = 100, 1e-3


def dense_stack(digits: Batches, *, seed: int, width: int = 128, depth: int = 8, epochs: int = 30) -> nn.Sequential:
    """Train `depth` dense layers with ReLU between them."""
    widths = [digits.inputs[0].numel(), *[width] * (depth - 1), 10]
    return _trained(lambda: _stack(widths), digits, seed, epochs)


def residual(
    digits: Batches, *, seed: int, channels: Sequence[int] = (16, 16, 32, 32), epochs: int = 20
) -> nn.Sequential:
    """Train a residual net: a convolution, a block of two of them for each of `channels`, and a dense layer.

    Where the number of channels changes the block halves the picture, and a 1 x 1 convolution goes around it.
    """
    return _trained(lambda: _residual(channels), digits, seed, epochs)


class Block(nn.Module):
    """Two convolutions with batch norm, and what they read added to what they give."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.around = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, H, W) to (n, outputs, H, W), or to half of each side."""
        inner = self.norm2(self.second(self.relu1(self.norm1(self.first(x)))))
        given: torch.Tensor = self.relu2(inner + self.around(x))
        return given


def _residual(channels: Sequence[int]) -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(1, channels[0], 3, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU())
    blocks = [Block(inputs, outputs) for inputs, outputs in itertools.pairwise([channels[0], *channels])]
    last = nn.Linear(channels[-1], 10)
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def _stack(widths: Sequence[int]) -> nn.Sequential:
    """Return it with He initialisation: at torch's own default so deep a stack learns nothing."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [linear := nn.Linear(inputs, outputs), nn.ReLU()]
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
    return nn.Sequential(*layers[:-1])


def _trained(build: Callable[[], nn.Sequential], digits: Batches, seed: int, epochs: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        for _ in range(epochs):
            for rows in torch.randperm(len(digits.labels)).split(BATCH):
                optimiser.zero_grad()
                functional.cross_entropy(model(digits.inputs[rows]), digits.labels[rows]).backward()
                optimiser.step()
    return model.eval()
