"""The outputs of a network's layers, beside the batches of another run: what a compressed network is to reproduce."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.capture import call, samples_in
from dalr_stream.network.layers import LayerSpec, linear, to_numpy
from dalr_stream.numerics.tiling import Rows


def with_outputs(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], outputs: dict[str, Rows]
) -> Iterator[Any]:
    """Yield each of `batches` once `model` has run on it; `outputs` then holds what its layers gave, bias and all.

    `outputs` is emptied before each batch. Raises InvalidInputError for a network in train mode, UnsupportedLayerError
    for a layer that a forward pass calls never or twice.
    """
    if any(module.training for module in model.modules()):
        raise InvalidInputError("capture: the original network must be in eval mode: call model.eval()")
    for batch in batches:
        outputs.clear()
        if samples_in(batch):
            with torch.inference_mode(), _watched_outputs(model, layers, outputs):
                call(model, batch)
            silent = [layer.name for layer in layers if layer.name not in outputs]
            if silent:
                raise UnsupportedLayerError(f"layer '{silent[0]}': is never called in a forward pass of the original")
        yield batch


@contextmanager
def _watched_outputs(model: nn.Module, layers: Sequence[LayerSpec], outputs: dict[str, Rows]) -> Iterator[None]:
    def hook_for(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(_: nn.Module, __: Any, leaving: torch.Tensor) -> None:
            if name in outputs:
                raise UnsupportedLayerError(f"layer '{name}': is called more than once in a forward pass")
            outputs[name] = to_numpy(leaving).reshape(-1, leaving.shape[-1])

        return hook

    with ExitStack() as stack:
        for layer in layers:
            handle = linear(model, layer.name).register_forward_hook(hook_for(layer.name))
            stack.callback(handle.remove)
        yield
