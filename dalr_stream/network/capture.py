"""Runs a network over batches and sends the inputs of its watched layers, as rows, to a sink.

The network is left as it was found: hooks live inside a `with` block, nothing is switched to eval mode behind the
user's back (a network in train mode is an error: dropout would make every row random), and no gradient is recorded.
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
from dalr_stream.network.layers import LayerSpec, linear, tensor_digest, to_host, to_numpy
from dalr_stream.numerics.moments import describe_non_finite
from dalr_stream.numerics.tiling import RowBatch, Rows, RowSink

BatchDone = Callable[[int, bool], None]
"""Called after each batch with its number of samples, and whether the network was spared it."""
ToRows = Callable[[torch.Tensor], Any]
"""Copies a layer's input into what its sink takes: a numpy array (`to_numpy`), or a tensor (`fold.on_device`)."""


def capture_rows(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    sink: RowSink,
    *,
    batch_done: BatchDone | None = None,
    to_rows: ToRows = to_numpy,
) -> None:
    """Send the inputs of `layers` to `sink`, batch after batch.

    Parameters
    ----------
    model
        In eval mode. A batch goes to the device of its first parameter.
    batches
        Each is a tensor (N, ...), a tuple whose first member is the input, or a mapping of keyword arguments. The same
        batches in the same order on every run: each one's digest is compared on resume.
    layers
        From `select_layers`. An input of shape (N, ..., d) gives prod(N, ...) rows of d features.
    sink
        Says which batches it holds already; those are not run again.
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
    seen = 0
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            samples, digest = samples_in(batch), _digest(batch)
            seen += samples
            spared = sink.skip(number, samples, digest)
            if not spared:
                rows = _rows_of(model, batch, layers, to_rows) if samples else {}
                _require_finite(rows, number)
                sink.write(RowBatch(samples, digest, rows))
            if batch_done is not None:
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
def watched(model: nn.Module, layers: Sequence[LayerSpec], to_rows: ToRows = to_numpy) -> Iterator[dict[str, Rows]]:
    """Collect the rows entering each layer during one forward pass; the hooks are gone when the block ends."""
    rows: dict[str, Rows] = {}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if name in rows:
                raise UnsupportedLayerError(f"layer '{name}': is called more than once in a forward pass")
            entering = to_rows(arguments[0] if arguments else keywords["input"])
            rows[name] = entering.reshape(-1, entering.shape[-1])

        return hook

    with ExitStack() as stack:
        for layer in layers:
            module = linear(model, layer.name)
            stack.enter_context(_removed(module.register_forward_pre_hook(hook_for(layer.name), with_kwargs=True)))
        yield rows


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _rows_of(model: nn.Module, batch: Any, layers: Sequence[LayerSpec], to_rows: ToRows) -> dict[str, Rows]:
    with watched(model, layers, to_rows) as rows:
        call(model, batch)
    for layer in layers:
        if layer.name not in rows:
            raise UnsupportedLayerError(f"layer '{layer.name}': is never called in a forward pass of this batch")
    return {layer.name: rows[layer.name] for layer in layers}


def _require_finite(rows: Mapping[str, Any], batch: int) -> None:
    for name, block in rows.items():
        finite = block.isfinite() if isinstance(block, torch.Tensor) else np.isfinite(block)
        if not finite.all():
            described = describe_non_finite(to_host(block))
            raise NonFiniteError(
                f"layer '{name}', batch {batch}: activations must be finite, got {described}; "
                "nothing of this batch was committed: look for overflow in half precision or bad inputs"
            )


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


def _digest(batch: Any) -> str:
    """SHA-256 of what the network sees of a batch; labels do not count."""
    if not isinstance(batch, Mapping):
        return tensor_digest(_first(batch))
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        digest.update(f"{name}:{tensor_digest(value) if isinstance(value, torch.Tensor) else value!r};".encode())
    return digest.hexdigest()
