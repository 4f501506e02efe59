"""How well a network predicts the next character: on real positions alone, whatever the padding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional

from text_data import PADDING

Pair = tuple[torch.Tensor, torch.Tensor]


def next_character_accuracy(model: nn.Module, batches: Iterable[Pair]) -> float:
    """Return the share of characters that are what the network thought likeliest."""
    right = total = 0
    for scores, targets in _scored(model, batches):
        right += int((scores.argmax(dim=1) == targets).sum())
        total += len(targets)
    return right / total


def bits_per_character(model: nn.Module, batches: Iterable[Pair]) -> float:
    """Return the mean of -log2 of the probability that each character was given."""
    lost, total = 0.0, 0
    for scores, targets in _scored(model, batches):
        lost += float(functional.cross_entropy(scores, targets, reduction="sum"))
        total += len(targets)
    return lost / total / math.log(2)


def _scored(model: nn.Module, batches: Iterable[Pair]) -> Iterator[Pair]:
    """Yield, for each batch, the scores (n, 128) and the characters (n,) of its real positions."""
    with torch.inference_mode():
        for inputs, targets in batches:
            real = targets != PADDING
            yield model(inputs)[real], targets[real]
