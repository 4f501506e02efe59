"""What a batch is: inputs, with labels or without; how a network is called on it; and which outputs are its scores.

Inputs are a tensor, or a mapping of keyword arguments as transformers take them. With labels a batch is the pair of
both, or a mapping that has them as `labels`, as transformers' collators make it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from inspect import signature
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import DalrStreamError, InvalidInputError
from dalr_stream.network.capture.eager import layer_by_layer
from dalr_stream.network.capture.reading import placed
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.identity import digest_of_member, tensor_digest
from dalr_stream.numerics.rows.sampling import HoldoutRule

LABELS = "labels"
IGNORED = -100
"""The label that torch's cross entropy leaves out, and that transformers' collators pad with."""
_NO_LABELS = {"gradients": "or take estimator 'vectors', which needs none, or a loss of your own"}
"""What to do without labels, by place."""
_BY_SAMPLE = (
    "input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features", "decoder_input_ids",
)  # fmt: skip
"""The keys of transformers' inputs that have a row a sample."""


def inputs_of(batch: Any) -> torch.Tensor | Mapping[str, Any]:
    """Return what the network is called with: the batch itself, or the first member of a tuple."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, torch.Tensor | Mapping):
        raise InvalidInputError(
            "a batch is a tensor, a mapping of keyword arguments, or a tuple whose first member is one of these; got "
            f"{type(first).__name__}"
        )
    return first


def holds_batches(value: Any) -> bool:
    """Tell whether iterating over it gives batches: a tensor is itself a batch, or one sample per row."""
    each = isinstance(value, Iterable) or hasattr(type(value), "__getitem__")
    return each and not isinstance(value, torch.Tensor | nn.Module)


@contextmanager
def refusals_explained(batch: Any, place: str) -> Iterator[None]:
    """Name the batch that a network refuses, around its forward pass.

    Raises InvalidInputError with the batch's form, and what torch says of it.
    """
    try:
        yield
    except (DalrStreamError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InvalidInputError(f"{place}: the network refuses {form_of(inputs_of(batch))}: {reason}") from error


def form_of(inputs: torch.Tensor | Mapping[str, Any]) -> str:
    """Return shape and type of a batch's inputs, in words."""
    if isinstance(inputs, Mapping):
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return ", ".join(f"{name} {form_of(tensor)}" for name, tensor in tensors.items())
    return f"{' x '.join(map(str, inputs.shape))} {str(inputs.dtype).removeprefix('torch.')}"


def samples_in(batch: Any) -> int:
    """Return N, the first dimension of a batch's tensors.

    Tensors (1, ...) stand for every sample, as `position_ids` do. Where others differ in their first dimension, those
    that transformers' models take samples by decide. Raises InvalidInputError where nothing does.
    """
    inputs = inputs_of(batch)
    named = inputs if isinstance(inputs, Mapping) else {"the batch": inputs}
    sizes = {name: len(value) for name, value in named.items() if isinstance(value, torch.Tensor) and value.ndim}
    if not sizes:
        raise InvalidInputError("capture: a batch must hold a tensor whose first dimension counts the samples")
    counting = {name: size for name, size in sizes.items() if not names_mask(name)} or sizes
    different = set(counting.values()) - {1}
    if len(different) < 2:
        return max(different, default=1)
    known = next((sizes[name] for name in _BY_SAMPLE if name in sizes), None)
    if known is None:
        shown = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise InvalidInputError(
            f"capture: the first dimension of a batch's tensors must be its number of samples, and they have {shown}: "
            "let what belongs to no sample be part of the network, or (1, ...)"
        )
    return known


def names_mask(key: str) -> bool:
    """Tell by its name whether an input is a mask: `attention_mask`, `mask_b`."""
    return not {"mask", "masks"}.isdisjoint(key.lower().split("_"))


def call(model: nn.Module, batch: Any) -> Any:
    """Run the network, layer by layer, on one batch's inputs: a tensor, or a mapping of keyword arguments.

    One whose weights are elsewhere has each piece read as it is called.
    """
    elsewhere = weights_elsewhere(model)
    own = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    device = own if elsewhere is None else elsewhere.device
    inputs = inputs_of(batch)
    with layer_by_layer(), nullcontext() if elsewhere is None else elsewhere.visiting():
        if isinstance(inputs, Mapping):
            return model(**{k: placed(v, device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
        return model(placed(inputs, device))


def inputs_copied(batch: Any) -> Any:
    """Return what the network is called with, in memory of its own: some networks overwrite what they are given."""
    return _copied(inputs_of(batch))


def arguments_copied(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a network is called with, in memory of its own."""
    return tuple(map(_copied, arguments)), {name: _copied(value) for name, value in keywords.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copied(member) for name, member in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors of floating point in whatever a network gives, also in an object with attributes of its own.

    What lies in further objects, in the caches of transformers' models say, is none of them.
    """
    own = vars(value).values() if hasattr(value, "__dict__") and not _is_known(value) else ()
    return _floating_in(value) + [tensor for member in own for tensor in _floating_in(member)]


def _floating_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    return [tensor for member in _members(value) for tensor in _floating_in(member)]


def _is_known(value: Any) -> bool:
    return isinstance(value, torch.Tensor | Mapping | list | tuple | SimpleNamespace) or is_dataclass(value)


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):  # before dataclasses: transformers' outputs are both
        return value.values()
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    if isinstance(value, SimpleNamespace):
        return vars(value).values()
    return value if isinstance(value, list | tuple) else ()


def first_argument(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
    """Return what a module was called with."""
    tensor: torch.Tensor = arguments[0] if arguments else next(iter(keywords.values()))
    return tensor


def few_samples(batch: Any, most: int) -> Any:
    """Return the first samples of a batch, in its own form; what is no sample stays as it is."""
    return _taken_of(batch, samples_in(batch), slice(most))


def held_out_of(batches: Iterable[Any], holdout: HoldoutRule) -> Iterator[Any]:
    """Yield of each batch, in its own form, the samples that a rule holds out of the statistics; none that has none."""
    first = 0
    for batch in batches:
        samples = samples_in(batch)
        held_out = np.flatnonzero(holdout.mask(np.arange(first, first + samples)))
        first += samples
        if len(held_out):
            yield _taken_of(batch, samples, torch.from_numpy(held_out))


def _taken_of(value: Any, samples: int, which: slice | torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        own = which if isinstance(which, slice) else which.to(value.device)
        return value[own] if value.ndim and len(value) == samples else value
    if isinstance(value, Mapping):
        return {name: _taken_of(member, samples, which) for name, member in value.items()}
    return tuple(_taken_of(member, samples, which) for member in value) if isinstance(value, list | tuple) else value


def require_mask_passed_on(model: nn.Module, batch: Any) -> None:
    """Raise InvalidInputError for tokens with a mask beside them that the network takes, and would not be given."""
    inputs = inputs_of(batch)
    if inputs is batch or not isinstance(inputs, torch.Tensor) or inputs.ndim != 2 or inputs.is_floating_point():
        return
    taken = [name for name in signature(model.forward).parameters if name.endswith("mask")]
    others = [member for member in batch[1:] if isinstance(member, torch.Tensor) and member.shape == inputs.shape]
    if taken and any(bool(((member == 0) | (member == 1)).all()) for member in others):
        first = next(iter(signature(model.forward).parameters))
        raise InvalidInputError(
            "capture: a batch is a tuple of tokens and what looks like their mask, and of a tuple the network is given "
            f"the first member alone: give mappings of its arguments, {{'{first}': tokens, '{taken[0]}': mask}}"
        )


def digest_of_inputs(batch: Any) -> str:
    """SHA-256 of what the network sees of a batch."""
    inputs = inputs_of(batch)
    if not isinstance(inputs, Mapping):
        return tensor_digest(inputs)
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(f"{name}:{digest_of_member(value)};".encode())
    return digest.hexdigest()


def labelled(batch: Any, place: str = "evaluate") -> tuple[torch.Tensor | Mapping[str, Any], torch.Tensor]:
    """Return the inputs of a labelled batch, and its labels, (N,) class numbers on the CPU.

    Raises InvalidInputError, naming `place`, for a batch of any other form.
    """
    if isinstance(batch, Mapping) and LABELS in batch:
        batch = {name: value for name, value in batch.items() if name != LABELS}, batch[LABELS]
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InvalidInputError(
            f"{place}: batches must be (inputs, labels) pairs or mappings with '{LABELS}', got a "
            f"{type(batch).__name__}: {_NO_LABELS.get(place, 'or name a metric of your own')}"
        )
    try:
        labels = torch.as_tensor(batch[1]).cpu()
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{place}: labels must be class numbers, got a {type(batch[1]).__name__} that makes no tensor ({error})"
        ) from error
    return inputs_of(batch), labels


def require_classes(labels: torch.Tensor, classes: int, place: str) -> None:
    """Raise InvalidInputError, naming `place`, for a label that is none of the classes, nor what torch leaves out."""
    outside = labels[(labels >= classes) | (labels < 0) & (labels != IGNORED)]
    if outside.numel():
        raise InvalidInputError(
            f"{place}: the network gives scores of the classes 0..{classes - 1}, and among the labels is "
            f"{int(outside[0])}: look at the labels, or at the network's last layer"
        )


def scores_of(outputs: Any) -> torch.Tensor:
    """Return the class scores, (N, classes), in what a network gave: a tensor, or transformers' outputs with `logits`.

    Raises InvalidInputError where there are none.
    """
    scores = getattr(outputs, "logits", outputs)
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
        what = tuple(scores.shape) if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise InvalidInputError(
            "evaluate: a network must give scores (N, classes), as a tensor or as `logits` of its output; it gave "
            f"{what}: name a metric of your own"
        )
    return scores
