"""Runs a network over batches and sends what its watched layers read or give, as rows, to a sink.

The network is left as it was found: hooks live inside a `with` block, nothing is switched to eval mode behind the
user's back (a network in train mode is an error: dropout would make every row random), and no gradient is recorded.
Rows are chosen and copied inside the hooks, as tensors on their own device: the network may overwrite its tensors from
then on. They become numpy arrays in a last step of its own.
A row batch reaches the sink whole and finite, or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.network.kinds import Rows, rows_entering, rows_leaving
from dalr_stream.network.layers import LayerSpec, layer_of, tensor_digest, to_host
from dalr_stream.network.loaders import beginning_at, restores
from dalr_stream.network.rows import BatchRows, RowRule, Taken
from dalr_stream.numerics.moments import describe_non_finite
from dalr_stream.numerics.sides import Side
from dalr_stream.numerics.tiling import RowBatch, RowSink

BatchDone = Callable[[int, bool], None]
"""Called after each batch with its number of samples, and whether the network was spared it."""
ToRows = Callable[[torch.Tensor], Any]
"""Makes what a sink takes of rows that are its own: a numpy array (`to_host`), or a tensor on a device."""


def capture_rows(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    sink: RowSink,
    *,
    rows: RowRule | None = None,
    batch_done: BatchDone | None = None,
    to_rows: ToRows = to_host,
) -> None:
    """Send what `layers` read, or give, to `sink`, batch after batch.

    Parameters
    ----------
    model
        In eval mode. A batch goes to the device of its first parameter.
    batches
        Each is a tensor (N, ...), a tuple whose first member is the input, or a mapping of keyword arguments. The same
        batches in the same order on every run: each one's digest is compared on resume. A loader that can begin in
        the middle (see `network.loaders`) does, and what it does not load is not compared.
    layers
        From `select_layers`. A tensor of shape (N, ..., d) gives prod(N, ...) rows of d features.
    sink
        Says which batches it holds already; those are not run again.
    rows
        Which of those rows are watched; all of them by default.
    to_rows
        What the sink takes as rows: numpy arrays by default, or tensors that stay where they are.

    Raises NonFiniteError (layer, batch and count named; nothing of that batch reaches the sink), UnsupportedLayerError
    for a layer that a forward pass calls never or twice, InvalidInputError for train mode or an empty loader.
    """
    if not layers:
        raise InvalidInputError("capture: needs at least one layer")
    training = [name or "the network" for name, module in model.named_modules() if module.training]
    if training:
        raise InvalidInputError(
            f"capture: the network must be in eval mode, '{training[0]}' is in train mode: call model.eval()"
        )
    rule, batch_done = rows or RowRule(), batch_done or _nobody_told
    held = sink.held if restores(batches) else ()
    first = max(len(held) - 1, 0)  # the last one is loaded again: a loader that begins in the wrong place is found out
    for samples in held[:first]:
        batch_done(samples, True)  # noqa: FBT003  # a Callable has no keywords
    seen = sum(held[:first])
    with torch.inference_mode():
        for number, batch in enumerate(beginning_at(batches, first) if first else batches, start=first):
            samples = samples_in(batch)
            mask = rule.mask_of(batch, samples)
            digest = _digest(batch, mask)
            spared = sink.skip(number, samples, digest)
            if not spared:
                taken = take_rows(model, batch, layers, BatchRows(rule, samples, seen, mask)) if samples else {}
                sink.write(_row_batch(samples, digest, taken, number, to_rows))
            seen += samples
            batch_done(samples, spared)
    if seen == 0:
        raise InvalidInputError("capture: the loader gave no sample: check the data set, its split and its filters")
    sink.finish()


def call(model: nn.Module, batch: Any) -> Any:
    """Run the network on one batch: a tensor, a tuple whose first member is the input, or keyword arguments."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        on_device = {k: value.to(device) if isinstance(value, torch.Tensor) else value for k, value in batch.items()}
        return model(**on_device)
    return model(_first(batch).to(device))


@contextmanager
def watched(model: nn.Module, layers: Sequence[LayerSpec], chosen: BatchRows) -> Iterator[dict[str, Taken]]:
    """Collect the chosen rows of each layer during one forward pass; the hooks are gone when the block ends."""
    taken: dict[str, Taken] = {}

    def take(layer: LayerSpec, rows: Rows) -> None:
        if layer.stream in taken:
            raise UnsupportedLayerError(f"layer '{layer.name}': is called more than once in a forward pass")
        taken[layer.stream] = chosen.take(layer.stream, rows)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(_hooked(layer_of(model, layer.name), layer, take).remove)
        yield taken


def _hooked(
    module: nn.Module, layer: LayerSpec, take: Callable[[LayerSpec, Rows], None]
) -> torch.utils.hooks.RemovableHandle:
    def entering(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        take(layer, rows_entering(layer.name, module, arguments[0] if arguments else next(iter(keywords.values()))))

    def leaving(_: nn.Module, __: tuple[Any, ...], outputs: torch.Tensor) -> None:
        take(layer, rows_leaving(module, outputs))

    if layer.side is Side.OUTPUTS:
        return module.register_forward_hook(leaving)
    return module.register_forward_pre_hook(entering, with_kwargs=True)


def take_rows(model: nn.Module, batch: Any, layers: Sequence[LayerSpec], chosen: BatchRows) -> dict[str, Taken]:
    """Run the network on one batch and return the chosen rows of each layer, by stream, as tensors."""
    with watched(model, layers, chosen) as taken:
        call(model, batch)
    for layer in layers:
        if layer.stream not in taken:
            raise UnsupportedLayerError(f"layer '{layer.name}': is never called in a forward pass of this batch")
    return {layer.stream: taken[layer.stream] for layer in layers}


def _row_batch(samples: int, digest: str, taken: Mapping[str, Taken], batch: int, to_rows: ToRows) -> RowBatch:
    """Turn what was taken into what the sink folds; NonFiniteError."""
    rows = {name: to_rows(found.rows) for name, found in taken.items()}
    _require_finite(rows, batch)
    counts = {name: found.counts for name, found in taken.items() if found.counts is not None}
    return RowBatch(samples, digest, rows, counts)


def _require_finite(rows: Mapping[str, Any], batch: int) -> None:
    for name, block in rows.items():
        finite = block.isfinite() if isinstance(block, torch.Tensor) else np.isfinite(block)
        if not finite.all():
            described = describe_non_finite(to_host(block))
            raise NonFiniteError(
                f"layer '{name}', batch {batch}: activations must be finite, got {described}; "
                "nothing of this batch was committed: look for overflow in half precision or bad inputs"
            )


def _nobody_told(samples: int, spared: bool) -> None:  # noqa: FBT001  # a BatchDone
    """Take no note of a batch."""


def _first(batch: Any) -> torch.Tensor:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, torch.Tensor):
        raise InvalidInputError(
            f"capture: a batch is a tensor, a tuple whose first member is one, or a mapping; got {type(first).__name__}"
        )
    return first


def samples_in(batch: Any) -> int:
    """Return N, the length of the first tensor of a batch."""
    tensors = batch.values() if isinstance(batch, Mapping) else [_first(batch)]
    shapes = [value.shape for value in tensors if isinstance(value, torch.Tensor)]
    if not shapes or not shapes[0]:
        raise InvalidInputError("capture: a batch must hold a tensor whose first dimension counts the samples")
    return shapes[0][0]


def _digest(batch: Any, mask: torch.Tensor | None) -> str:
    """SHA-256 of what decides the rows of a batch: what the network sees, and the mask; labels do not count."""
    seen = digest_of_inputs(batch)
    return seen if mask is None else hashlib.sha256(f"{seen}:{tensor_digest(mask)}".encode()).hexdigest()


def digest_of_inputs(batch: Any) -> str:
    """SHA-256 of what the network sees of a batch."""
    if not isinstance(batch, Mapping):
        return tensor_digest(_first(batch))
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        digest.update(f"{name}:{tensor_digest(value) if isinstance(value, torch.Tensor) else value!r};".encode())
    return digest.hexdigest()
