"""The share of samples that a network puts in their own class."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import call, labelled, refusals_explained, scores_of
from dalr_stream.network.capture.reading import without_gradients


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return the share of samples whose largest score is their label, in 0..1.

    Batches are (inputs, labels), or mappings with `labels`; scores are the outputs, or their `logits`. Raises
    InvalidInputError for anything else.
    """
    right = total = 0
    with without_gradients():
        for number, batch in enumerate(batches):
            inputs, labels = labelled(batch)
            with nullcontext() if number else refusals_explained(batch, "evaluate: batch 0"):
                predicted = scores_of(call(model, inputs)).argmax(dim=1).cpu()
            if labels.shape != predicted.shape:
                raise InvalidInputError(
                    f"evaluate: {len(predicted)} samples need as many class numbers as labels, got "
                    f"{tuple(labels.shape)}: or name a metric of your own"
                )
            right += int((predicted == labels).sum())
            total += len(labels)
    if total == 0:
        raise InvalidInputError("evaluate: the loader gave no sample: check the data set and its split")
    return right / total
