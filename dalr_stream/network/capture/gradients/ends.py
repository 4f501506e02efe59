"""Where a backward pass begins: which of the things that a network returns has a loss, or that loss, by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import labelled
from dalr_stream.network.capture.gradient_rule import GradientRule, Metric

LOGITS = "logits"
_IGNORED = -100
"""The label that torch's cross entropy leaves out by default, and transformers' collators pad with."""


@dataclass(frozen=True, slots=True)
class End:
    """What a network returned for a batch of so many samples."""

    returned: Any
    batch: Any
    samples: int


def end_of(end: End, rule: GradientRule) -> torch.Tensor:
    """Return what gradients are of: the outputs that the rule means, (N, C) or (N, T, C), or losses, (N, ...).

    Raises InvalidInputError where they are not there, or of another form.
    """
    if rule.loss is not None:
        return _require_by_sample(rule.loss(end.returned, end.batch), end.samples)
    output = _output_of(end, rule)
    return _cross_entropy(output, end.batch) if rule.by_labels else output


def require_gradient(end: torch.Tensor) -> None:
    """Raise InvalidInputError where no watched layer can be reached from it."""
    if not end.requires_grad:
        raise InvalidInputError(
            "gradients: the network's output carries no gradient back to the watched layers: they are not on the way "
            "to it, or between them and it the network detaches, or runs under torch.no_grad() or in inference mode: "
            "take that out, or name another output as gradients.outputs"
        )


def _output_of(end: End, rule: GradientRule) -> torch.Tensor:
    output = _chosen(end.returned, rule)
    what = "gradients: the network's output" + (f" '{rule.outputs}'" if isinstance(rule.outputs, str) else "")
    if not isinstance(output, torch.Tensor):
        raise InvalidInputError(
            f"{what} must be a tensor, got {_form(output)}: name the one to take as gradients.outputs, a key or a "
            "function of what the network returns"
        )
    if not output.is_floating_point():
        raise InvalidInputError(
            f"{what} must hold real numbers that have gradients, got {output.dtype}: name scores or values; what an "
            "argmax gives has none"
        )
    if output.ndim not in (2, 3) or len(output) != end.samples:
        raise InvalidInputError(
            f"{what} must be (N, C) or (N, T, C) for N = {end.samples} samples, got {tuple(output.shape)}: name a "
            "function as gradients.outputs that brings it to this form"
        )
    if rule.metric is Metric.CLASSES and output.shape[-1] == 1:
        raise InvalidInputError(
            f"{what} has one class score, {tuple(output.shape)}, whose softmax is always 1 and has no gradient: set "
            "gradients.metric to 'values', or name a function as gradients.outputs that gives two scores"
        )
    return output


def _chosen(returned: Any, rule: GradientRule) -> Any:
    if callable(rule.outputs):
        return rule.outputs(returned)
    if rule.outputs is not None:
        return _by_key(returned, rule.outputs)
    if not isinstance(returned, torch.Tensor) and rule.metric is Metric.CLASSES:
        return getattr(returned, LOGITS, returned)
    return returned


def _by_key(returned: Any, key: str) -> Any:
    if isinstance(returned, Mapping) and key in returned:
        return returned[key]
    if isinstance(returned, list | tuple) and key.isdecimal() and int(key) < len(returned):
        return returned[int(key)]
    if not isinstance(returned, Mapping) and hasattr(returned, key):
        return getattr(returned, key)
    raise InvalidInputError(
        f"gradients: the network's outputs have no '{key}', they are {_form(returned)}: name one of them as "
        "gradients.outputs, or a function of what the network returns"
    )


def _form(returned: Any) -> str:
    if isinstance(returned, Mapping):
        return f"a {type(returned).__name__} of {', '.join(map(repr, returned))}"
    if isinstance(returned, list | tuple):
        return f"a {type(returned).__name__} with members '0' to '{len(returned) - 1}'"
    return f"a {type(returned).__name__}"


def _cross_entropy(output: torch.Tensor, batch: Any) -> torch.Tensor:
    """Return the loss of each class score, (N,) or (N, T), by the batch's labels."""
    _, labels = labelled(batch)
    if labels.shape != output.shape[:-1] or labels.is_floating_point():
        raise InvalidInputError(
            f"gradients: class scores {tuple(output.shape)} need a class number each as labels, got {labels.dtype} "
            f"{tuple(labels.shape)}: give a loss of your own, or take estimator 'vectors', which needs no labels"
        )
    scores = output.movedim(-1, 1)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return functional.cross_entropy(scores, labels.long().to(output.device), reduction="none", ignore_index=_IGNORED)


def _require_by_sample(losses: Any, samples: int) -> torch.Tensor:
    if not isinstance(losses, torch.Tensor) or losses.ndim == 0 or len(losses) != samples:
        what = tuple(losses.shape) if isinstance(losses, torch.Tensor) else f"a {type(losses).__name__}"
        raise InvalidInputError(
            f"gradients: a loss must give a value for each of {samples} samples, got {what}: use reduction='none'; a "
            "mean over the batch would divide each sample's gradient by the size of the batch"
        )
    return losses
