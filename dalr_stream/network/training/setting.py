"""How a network is fine-tuned, and what it learns from: labels, or the original's outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import require_classes
from dalr_stream.network.layers.identity import fingerprint, identity_of
from dalr_stream.network.training.output_loss import OutputLoss
from dalr_stream.network.training.trainable import Train
from dalr_stream.numerics.options import parse_choice, whole_number
from dalr_stream.storage.json_record import digest_of

Loss = Callable[[Any, Any], torch.Tensor]
"""`loss(outputs, labels)`, a scalar: the mean over the batch."""

PAPERS_DECAY = 5e-4
"""MoMaSP section 5.1."""


def cross_entropy(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of class scores, or of the `logits` of what a transformers model gives.

    Scores of positions are (N, T, C), or (N, C, ...) as torch has them.
    """
    scores = getattr(outputs, "logits", outputs)
    if scores.ndim > 1 and labels.shape == scores.shape[:-1]:
        scores = scores.movedim(-1, 1)
    elif scores.ndim > 1 and labels.shape not in (scores.shape, scores.shape[:1] + scores.shape[2:]):
        raise InvalidInputError(
            f"fine-tuning: class scores {tuple(scores.shape)} need a class number each as labels, got {labels.dtype} "
            f"{tuple(labels.shape)}: look at the labels, or give a loss of your own"
        )
    if scores.ndim > 1 and not labels.is_floating_point():
        require_classes(labels, scores.shape[1], "fine-tuning")
    return functional.cross_entropy(scores, labels)


@dataclass(frozen=True, slots=True)
class FineTuning:
    """How a network is fine-tuned by `finetune`.

    Attributes
    ----------
    epochs
        How often the batches are gone through, 1 or more.
    rate
        Learning rate of Adam.
    weight_decay
        Added to the gradient: `weight_decay` times the weight. By default 5e-4 with labels and 0 towards the original's
        outputs, where a decay would move a network that has nothing to learn.
    layers
        Patterns of modules whose parameters are trained: names, globs or `re:...`. The name of a layer that became a
        factor pair stands for the pair. Parameters shared with such a layer are trained with it.
    train
        What of the network is trained: "layers", all of those that `layers` names, or every fully connected one;
        "factors", the factors of each compressed layer and every bias, where `layers` names any within those; "all",
        everything.
    dropout
        Whether dropout modules drop. Dropout that is not a module of its own never does.
    loss
        Called with outputs and labels, it gives a scalar: the mean over the batch. An `OutputLoss` needs no labels.
    seed
        Decides what the loader and the network draw from torch's generator.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.FineTuning(epochs=3, layers=("classifier.*",)).rate
    0.0001
    """

    epochs: int = 10
    rate: float = 1e-4
    weight_decay: float | None = None
    layers: tuple[str, ...] = ()
    train: Train | str = Train.LAYERS
    dropout: bool = False
    loss: Loss = cross_entropy
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number(self.epochs, "fine-tuning: epochs")
        if not 0.0 < self.rate < math.inf:
            raise InvalidInputError(f"fine-tuning: rate must be a number above 0, got {self.rate}")
        if not 0.0 <= self.decay < math.inf:
            raise InvalidInputError(f"fine-tuning: weight_decay must be a number >= 0, got {self.weight_decay}")
        if not callable(self.loss):
            raise InvalidInputError(
                f"fine-tuning: loss must be a function of outputs and labels, got {self.loss!r}: towards the "
                "original's outputs it is ds.OutputLoss(model)"
            )
        if isinstance(self.layers, str):
            raise InvalidInputError(f"fine-tuning: layers must be a sequence of patterns, got '{self.layers}'")
        if parse_choice(Train, self.train, "fine-tuning: train") is Train.ALL and self.layers:
            raise InvalidInputError("fine-tuning: train = 'all' trains every layer: leave out `layers`, or `train`")

    @property
    def without_labels(self) -> bool:
        """Whether the loss compares with the original's outputs and needs no labels."""
        return isinstance(self.loss, OutputLoss)

    @property
    def decay(self) -> float:
        """The weight decay, MoMaSP's where none is given and labels are learnt from."""
        if self.weight_decay is None:
            return 0.0 if self.without_labels else PAPERS_DECAY
        return self.weight_decay

    def made_from(self, model: nn.Module) -> str:
        """Return the digest of what decides the result, except for the batches.

        A loss is identified by its name, with a module's settings and tensors and the arguments of a
        `functools.partial`; an `OutputLoss` by its original. What your own function has closed over is not seen: pass
        it as arguments of a partial.
        """
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "loss"}
        loss = self.loss.made_from if isinstance(self.loss, OutputLoss) else identity_of(self.loss)
        return digest_of([fingerprint(model), {**facts, "weight_decay": self.decay}, loss])
