"""The share of samples that a network puts in their own class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import call, labelled, refusals_explained, scores_of
from dalr_stream.network.capture.reading import without_gradients


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return the share of samples whose largest score is their label, in 0..1.

    Parameters
    ----------
    model
        Gives class scores (N, classes), or an object with `logits`.
    batches
        (inputs, labels), or mappings with `labels`; labels are class numbers (N,).

    Returns
    -------
    float
        Correct samples / all samples.

    Raises
    ------
    InvalidInputError
        For batches or labels of another form, and a loader that gives no samples.

    See Also
    --------
    dalr_stream.OutputDistance : how far outputs moved, without labels.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> ds.network.accuracy(torch.nn.Identity(), [(scores, torch.tensor([0, 0]))])
    0.5
    """
    right = total = 0
    with without_gradients():
        for number, batch in enumerate(batches):
            inputs, labels = labelled(batch)
            with refusals_explained(batch, f"evaluate: batch {number}"):
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
