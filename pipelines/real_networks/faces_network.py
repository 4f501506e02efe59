"""ONet, the last of MTCNN's three networks (Zhang et al. 2016): whether a picture of 48 x 48 is a face.

The package `facenet-pytorch` ships its weights (MIT), 0.39 million; its heads for boxes and landmarks are left out.
"""

from __future__ import annotations

import torch
from torch import nn

from package_files import tensors_of

OTHER_HEADS = ("dense6_2", "dense6_3")


class ONet(nn.Module):
    """Pictures (N, 3, 48, 48) from -1 to 1 to scores (N, 2): no face, face."""

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs, kernel) in enumerate(((3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2)), 1):
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, kernel))
            self.add_module(f"prelu{number}", nn.PReLU(outputs))
        self.pools = nn.ModuleList(nn.MaxPool2d(kernel, 2, ceil_mode=True) for kernel in (3, 3, 2))
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 48, 48) to (N, 2)."""
        for number in range(1, 5):
            x = self.get_submodule(f"prelu{number}")(self.get_submodule(f"conv{number}")(x))
            x = self.pools[number - 1](x) if number <= len(self.pools) else x
        scores: torch.Tensor = self.dense6_1(self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1))))
        return scores


def build() -> nn.Module:
    """Build the network with its weights."""
    network = ONet()
    weights = tensors_of("facenet_pytorch", "data/onet.pt", install="--no-deps 'facenet-pytorch>=2.6'")
    network.load_state_dict({name: one for name, one in weights.items() if not name.startswith(OTHER_HEADS)})
    return network.eval()
