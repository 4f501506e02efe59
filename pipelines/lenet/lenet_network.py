"""LeNet-5 as the authors' TensorFlow example has it: 32 x 32 pictures, ReLU, max-pooling, 61,706 parameters.

Training is that of the usual TensorFlow tutorial: Adam at 1e-3 on batches of 128.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from dalr_stream.network import parameter_count
from lenet_data import rows_for_training

PARAMETERS = 61_706
"""Of the authors' example (dalr_readme.txt and its notebook)."""
BATCH = 128
LEARNING_RATE = 1e-3


class LeNet(nn.Module):
    """Pictures (n, 1, 32, 32) to class scores (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Class scores; soft-max is the loss's."""
        hidden = torch.relu(self.fc1(self.flatten(self.features(pictures))))
        scores: torch.Tensor = self.fc3(torch.relu(self.fc2(hidden)))
        return scores


def build(*, data: str = "digits") -> LeNet:
    """Build the network, untrained, the same for every data set; raises RuntimeError if it is not the published one."""
    del data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LeNet()
    if parameter_count(network) != PARAMETERS:
        raise RuntimeError(f"LeNet must have {PARAMETERS:,} parameters, this one has {parameter_count(network):,}")
    return network


def train(
    model: nn.Module, *, seed: int, report: Callable[[str], None], data: str = "digits", epochs: int = 30
) -> None:
    """Train `model` in place on the training rows; the starting weights are those it was built with."""
    rows = rows_for_training(seed=seed, data=data)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            for picked in torch.randperm(len(rows.labels)).split(BATCH):
                optimiser.zero_grad()
                loss = functional.cross_entropy(model(rows.inputs[picked]), rows.labels[picked])
                loss.backward()
                optimiser.step()
            if epoch % 10 == 0 or epoch == epochs:
                report(f"epoch {epoch}/{epochs}: loss of the last batch {loss.item():.4f}")
    model.eval()
