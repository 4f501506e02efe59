"""Fine-tuning a pre-trained VGG19 on a target, as each of the two papers did it, up to what they leave open.

Both keep ImageNet's convolutions as they are, replace fc8 for the target's classes and train the fully connected layers
on the training split alone. The recipes:

- `dalr` (section 5.3): gradient descent with momentum; fc6 and fc7 learn at 0.1 of the rate of fc8. For the birds each
  picture is shown a second time, cut to its bounding box (section 5.1; the loader's option `boxes`).
- `momasp` (section 5.1): Adam at 1e-4, weight decay 5e-4, batches of 50, the same rate for all three layers.

The number of epochs, the rate of the first recipe and its fall are in neither paper's text: they are this file's.

Since the convolutions do not change, what fc6 reads is computed once, to a temporary file that is mapped into memory
and gone at the end (100 kB a picture: 600 MB for 5,994 pictures, twice that with boxes).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from dalr_stream.errors import InvalidInputError
from images_batches import ImageBatches
from images_data import target_train
from vgg19_network import CLASSIFIER, VGG

Report = Callable[[str], None]
TRUNK_MULTIPLIER = 0.1
"""Rate of fc6 and fc7 relative to that of fc8 (DALR, section 5.3)."""
DECAY = 5e-4
"""Weight decay: MoMaSP, section 5.1; the DALR paper names none, and VGG's own is the same."""
MOMENTUM = 0.9
SPREAD = 0.01
"""Standard deviation of a new classifier's weights, as VGG and torchvision draw them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the fully connected layers learn; the rate falls to 0 along half a cosine."""

    kind: Literal["dalr", "momasp"]
    epochs: int
    learning_rate: float
    batch_size: int = 50

    def __post_init__(self) -> None:
        if self.kind not in ("dalr", "momasp"):
            raise InvalidInputError(f"recipe: must be 'dalr' or 'momasp', got '{self.kind}'")
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise InvalidInputError(f"recipe: epochs, batch_size and learning_rate must be above 0, got {self}")

    def optimiser(self, classifier: nn.Sequential) -> torch.optim.Optimizer:
        """Make the optimiser of the fully connected layers."""
        if self.kind == "momasp":
            return torch.optim.Adam(classifier.parameters(), lr=self.learning_rate, weight_decay=DECAY)
        last = list(classifier[-1].parameters())
        trunk = [parameter for layer in classifier[:-1] for parameter in layer.parameters()]
        groups = [{"params": trunk, "lr": TRUNK_MULTIPLIER * self.learning_rate}, {"params": last}]
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=MOMENTUM, weight_decay=DECAY)


@dataclass(frozen=True, slots=True)
class Rows:
    """What fc6 reads of each training picture, on disk, and the labels."""

    inputs: NDArray[np.float32]
    """(n, d), mapped from a file."""
    labels: torch.Tensor

    def batch(self, picked: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the rows of some pictures, and their labels."""
        return torch.from_numpy(self.inputs[picked.numpy()]).to(device), self.labels[picked].to(device)


def train(  # noqa: PLR0913 - each is an option of the run file
    model: nn.Module,
    *,
    seed: int,
    report: Report,
    start: Path,
    pictures: Mapping[str, Any],
    recipe: Literal["dalr", "momasp"] = "dalr",
    epochs: int = 30,
    learning_rate: float | None = None,
    batch_size: int = 50,
    device: str | None = None,
) -> None:
    """Train ``model`` (of `vgg19_network.build`) in place; it is left in evaluation mode, on the processor.

    Parameters
    ----------
    seed
        Decides the new classifier, the order of the pictures and dropout.
    report
        Takes one line after each epoch.
    start
        ImageNet's weights as safetensors (`vgg19_convert.py` makes the file): `network.start` in the run file.
    pictures
        Options of `images_data.target_train`.
    recipe, epochs, learning_rate, batch_size
        See above; the rate is that of fc8, by default 1e-2 (`dalr`) or 1e-4 (`momasp`).
    device
        By default a GPU where torch sees one.
    """
    if not isinstance(model, VGG):
        raise InvalidInputError(f"train: the model must be a VGG (vgg19_network:build), got {type(model).__name__}")
    rate = learning_rate or {"dalr": 1e-2, "momasp": 1e-4}.get(recipe, 0.0)
    how = Recipe(recipe, epochs, rate, batch_size)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        load_trunk(model, start)
        batches = target_train(seed=seed, **pictures)
        report(f"fine-tuning on {len(batches.pictures):,} pictures, convolutions frozen")
        with frozen_rows(model.to(place), batches) as rows:
            fine_tune(model, rows, how, report)
    model.to("cpu").eval()


def load_trunk(model: VGG, path: Path) -> None:
    """Load every weight but the classifier's, which is drawn anew; raise InvalidInputError where one does not fit."""
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{CLASSIFIER}.")}
    weights = load_file(path)
    wrong = [name for name, value in wanted.items() if name not in weights or weights[name].shape != value.shape]
    if wrong:
        raise InvalidInputError(
            f"network.start: '{path}' does not hold the network's '{wrong[0]}' in its shape "
            f"({len(wrong)} of {len(wanted)} tensors do not fit): convert the weights of VGG19 with vgg19_convert.py"
        )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)
    nn.init.normal_(model.classifier[-1].weight, std=SPREAD)
    nn.init.zeros_(model.classifier[-1].bias)


@contextmanager
def frozen_rows(model: VGG, batches: ImageBatches) -> Iterator[Rows]:
    """Compute what fc6 reads of every picture, once, to a file that is gone when the block ends."""
    model.eval()
    device, width = next(model.parameters()).device, model.classifier[0].in_features
    with tempfile.TemporaryFile() as file:
        inputs = np.memmap(file, np.float32, "w+", shape=(len(batches.pictures), width))
        done, labels = 0, []
        with torch.inference_mode():
            for pictures, found in batches:
                inputs[done : done + len(found)] = model.flat(pictures.to(device)).cpu().numpy()
                done += len(found)
                labels.append(found)
        yield Rows(inputs, torch.cat(labels))


def fine_tune(model: VGG, rows: Rows, how: Recipe, report: Report) -> None:
    """Train the fully connected layers; pictures in a new random order each epoch, all of them, none held back."""
    model.features.requires_grad_(requires_grad=False)
    optimiser, device = how.optimiser(model.classifier), next(model.parameters()).device
    n = len(rows.labels)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=how.epochs * -(-n // how.batch_size))
    for epoch in range(1, how.epochs + 1):
        model.classifier.train()
        total = right = 0.0
        for picked in torch.randperm(n).split(how.batch_size):
            inputs, labels = rows.batch(picked, device)
            optimiser.zero_grad()
            scores = model.classifier(inputs)
            loss = functional.cross_entropy(scores, labels)
            loss.backward()
            optimiser.step()
            falling.step()
            total += loss.item() * len(picked)
            right += int((scores.argmax(dim=1) == labels).sum())
        report(f"epoch {epoch}/{how.epochs}: loss {total / n:.4f}, accuracy with dropout {right / n:.4f}")
    model.eval()
