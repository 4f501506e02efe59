"""Where a backward pass begins: which of the things that a network returns has a loss, or that loss, by sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from dalr_stream.errors import DalrStreamError, InvalidInputError
from dalr_stream.network.capture.batches import IGNORED, labelled, require_classes, tensors_in
from dalr_stream.network.capture.gradient_rule import GradientRule, Metric, name_of
from dalr_stream.network.capture.resuming.given import Spent

PLACE = "gradients"
LOGITS, LOSS = "logits", "loss"
LOSS_ROUNDING = 1e-4
"""Of a mean loss in float32; coarser types have more, `_ROUNDINGS` of their own."""
_ROUNDINGS = 16


@dataclass(frozen=True, slots=True)
class End:
    """What a network returned for a batch of so many samples."""

    returned: Any
    batch: Any
    samples: int
    number: int = 0
    """Of the batch, for messages."""


def end_of(end: End, rule: GradientRule) -> torch.Tensor:
    """Return what gradients are of: the outputs that the rule means, (N, C) or (N, T, C), or losses, (N, ...).

    Raises InvalidInputError where they are not there, or of another form.
    """
    if rule.loss is not None:
        with _explained(f"the loss '{name_of(rule.loss)}'", end):
            losses = rule.loss(end.returned, end.batch)
        return _require_by_sample(losses, end.samples)
    output = _output_of(end, rule)
    return _cross_entropy(output, end) if rule.by_labels else output


def require_own_loss(end: End, rule: GradientRule, losses: torch.Tensor) -> None:
    """Raise InvalidInputError where a network that was given the labels returned another loss than their mean.

    A decoder's, say, which compares each position with the label of the next one.
    """
    returned = end.returned
    own = returned.get(LOSS) if isinstance(returned, Mapping) else getattr(returned, LOSS, None)
    if rule.loss is not None or not rule.by_labels or not isinstance(own, torch.Tensor) or not _is_number(own):
        return
    counted = losses.detach()[labelled(end.batch, PLACE)[1].to(losses.device) != IGNORED].double()
    if not len(counted):
        return
    expected, found = float(own.detach()), float(counted.mean())
    coarsest = max(
        torch.finfo(one.dtype).eps for one in tensors_in(returned)
    )  # scores may be handed out in another type
    rounding = max(LOSS_ROUNDING, _ROUNDINGS * coarsest)
    if math.isfinite(expected) and abs(found - expected) > rounding * max(abs(expected), 1.0):
        raise InvalidInputError(
            f"gradients: batch {end.number}: the network's own loss of these labels is {expected:.5g}, and the mean "
            f"cross entropy of its class scores by them {found:.5g}: it shifts the labels, as decoders do, weighs or "
            "smooths them: give that loss as gradients.loss, a value a sample, or take estimator 'vectors', which "
            "needs no labels"
        )


def require_gradient(end: torch.Tensor) -> None:
    """Raise InvalidInputError where no watched layer can be reached from it."""
    if not end.requires_grad:
        raise InvalidInputError(
            "gradients: the network's output carries no gradient back to the watched layers: they are not on the way "
            "to it, or between them and it the network detaches, or runs under torch.no_grad() or in inference mode: "
            "take that out, or name another output as gradients.outputs"
        )


def _output_of(end: End, rule: GradientRule) -> torch.Tensor:
    output = _chosen(end, rule)
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


def _chosen(end: End, rule: GradientRule) -> Any:
    returned = end.returned
    if callable(rule.outputs):
        with _explained(f"the function '{name_of(rule.outputs)}' of outputs", end):
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
    if isinstance(returned, torch.Tensor):
        return f"a tensor {tuple(returned.shape)} of {returned.dtype}"
    return f"a {type(returned).__name__}"


def _cross_entropy(output: torch.Tensor, end: End) -> torch.Tensor:
    """Return the loss of each class score, (N,) or (N, T), by the batch's labels."""
    _, labels = labelled(end.batch, PLACE)
    if labels.shape != output.shape[:-1] or labels.is_floating_point():
        raise InvalidInputError(
            f"gradients: class scores {tuple(output.shape)} need a class number each as labels, got {labels.dtype} "
            f"{tuple(labels.shape)}: give a loss of your own, or take estimator 'vectors', which needs no labels"
        )
    require_classes(labels, output.shape[-1], f"{PLACE}: batch {end.number}")
    scores = output.movedim(-1, 1)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return functional.cross_entropy(scores, labels.long().to(output.device), reduction="none", ignore_index=IGNORED)


def _require_by_sample(losses: Any, samples: int) -> torch.Tensor:
    if not isinstance(losses, torch.Tensor) or losses.ndim == 0 or len(losses) != samples:
        what = tuple(losses.shape) if isinstance(losses, torch.Tensor) else f"a {type(losses).__name__}"
        raise InvalidInputError(
            f"gradients: a loss must give a value for each of {samples} samples, got {what}: use reduction='none'; a "
            "mean over the batch would divide each sample's gradient by the size of the batch"
        )
    if not losses.is_floating_point():
        raise InvalidInputError(f"gradients: a loss must be of real numbers that have gradients, got {losses.dtype}")
    return losses


def _is_number(value: torch.Tensor) -> bool:
    return not isinstance(value, Spent) and value.numel() == 1 and value.is_floating_point()


@contextmanager
def _explained(what: str, end: End) -> Iterator[None]:
    """Say of which batch a function of the user's fails, and on what."""
    try:
        yield
    except (DalrStreamError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever it is, it comes of what it was given
        raise InvalidInputError(
            f"gradients: batch {end.number}: {what} fails on what the network returned, {_form(end.returned)} "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
        ) from error
