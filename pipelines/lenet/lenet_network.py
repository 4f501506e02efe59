"""LeNet-5 as the authors' TensorFlow example has it: 32 x 32 pictures, ReLU, max-pooling, 61,706 parameters.

Two ways to train it. `tutorial`, the default: Adam at 1e-3 on batches of 128, whole epochs. `notebook`, what the
authors' example does: gradient descent at 0.01, 1,000 batches of 100 drawn with replacement, from weights of a normal
distribution cut at two of its standard deviations of 0.1, and biases of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from dalr_stream.network import parameter_count
from labelled_batches import Batches
from lenet_data import rows_for_training

PARAMETERS = 61_706
"""Of the authors' example (dalr_readme.txt and its notebook)."""
BATCH, LEARNING_RATE = 128, 1e-3
NOTEBOOK_BATCH, NOTEBOOK_RATE = 100, 0.01
SPREAD = 0.1
"""Standard deviation of the notebook's starting weights."""
REPORT_EVERY = 100


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


def build(*, data: str = "digits", root: str | None = None) -> LeNet:
    """Build the network, untrained, the same for every data set; raises RuntimeError if it is not the published one."""
    del data, root
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LeNet()
    if parameter_count(network) != PARAMETERS:
        raise RuntimeError(f"LeNet must have {PARAMETERS:,} parameters, this one has {parameter_count(network):,}")
    return network


def train(  # noqa: PLR0913 - each is an option of the run file
    model: nn.Module,
    *,
    seed: int,
    report: Callable[[str], None],
    data: str = "digits",
    root: str | None = None,
    recipe: Literal["tutorial", "notebook"] = "tutorial",
    epochs: int = 30,
    steps: int = 1000,
) -> None:
    """Train `model` in place on the training rows.

    Parameters
    ----------
    seed
        Decides the order of the rows, and with `notebook` the starting weights; else they are those it was built with.
    report
        Takes a line now and then.
    data, root
        As the loaders take them.
    recipe
        `tutorial`, of `epochs` passes, or `notebook`, of `steps` batches.
    """
    if recipe not in ("tutorial", "notebook"):
        raise ValueError(f"recipe: must be 'tutorial' or 'notebook', got {recipe!r}")
    rows = rows_for_training(seed=seed, data=data, root=root)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe == "tutorial":
            _descend(model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE), rows, _epochs(rows, epochs), report)
        else:
            _start(model)
            _descend(model, torch.optim.SGD(model.parameters(), lr=NOTEBOOK_RATE), rows, _draws(rows, steps), report)
    model.eval()


def _start(model: nn.Module) -> None:
    """Draw the weights as the notebook does."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            nn.init.trunc_normal_(parameter, std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)
        else:
            nn.init.zeros_(parameter)


def _epochs(rows: Batches, epochs: int) -> Iterator[torch.Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(len(rows.labels)).split(BATCH)


def _draws(rows: Batches, steps: int) -> Iterator[torch.Tensor]:
    for _ in range(steps):
        yield torch.randint(len(rows.labels), (NOTEBOOK_BATCH,))


def _descend(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    rows: Batches,
    batches: Iterator[torch.Tensor],
    report: Callable[[str], None],
) -> None:
    for step, picked in enumerate(batches, start=1):
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(rows.inputs[picked]), rows.labels[picked])
        loss.backward()
        optimiser.step()
        if step % REPORT_EVERY == 0:
            report(f"step {step}: loss of the batch {loss.item():.4f}")
