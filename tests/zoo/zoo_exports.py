"""A compressed network by other ways than calling it: writing words, compiled, as ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from zoo_case import Architecture
from zoo_rows import apart, layers_that_call_one_another, run, tensors_of


def generated(net: nn.Module, small: nn.Module, one: Architecture) -> float | str:
    """Return 0 where both write the same words."""
    inputs = {name: value for name, value in one.batch.items() if not name.startswith("decoder_")}

    def written(network: Any) -> torch.Tensor:
        tokens: torch.Tensor = network.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
        return tokens

    try:
        expected = written(net)
    except Exception as error:  # noqa: BLE001  # the original cannot
        return f"nor the original ({type(error).__name__})"
    return 0.0 if torch.equal(written(small), expected) else float("inf")


def compiled(net: nn.Module, small: nn.Module, one: Architecture) -> float | str:
    """Return how far the compiled network is; a reason where the original does not compile either."""

    def run_compiled(network: nn.Module) -> list[torch.Tensor]:
        torch.compiler.reset()
        with layers_that_call_one_another():
            return tensors_of(run(torch.compile(network, backend="aot_eager"), one.batch))

    return as_the_original(run_compiled, net, small, one)


class Tensors(nn.Module):
    """A network as a function of tensors alone, by position, as exporting wants it."""

    def __init__(self, net: nn.Module, names: list[str] | None) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        outputs = self.net(**dict(zip(self.names, inputs, strict=True))) if self.names else self.net(*inputs)
        return tensors_of(outputs)


def exported(net: nn.Module, small: nn.Module, one: Architecture) -> float | str:
    """Return how far the ONNX model is, as the reference evaluator of ONNX computes it."""

    def run_exported(network: nn.Module) -> list[torch.Tensor]:
        names = list(one.batch) if isinstance(one.batch, Mapping) else None
        inputs = tuple(one.batch.values()) if names else (one.batch,)
        with layers_that_call_one_another(), torch.no_grad():
            program = torch.onnx.export(Tensors(network, names), inputs, dynamo=True, verbose=False)
        model = program.model_proto
        feeds = {port.name: value.numpy() for port, value in zip(model.graph.input, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(value)) for value in ReferenceEvaluator(model).run(None, feeds)]

    return as_the_original(run_exported, net, small, one)


def as_the_original(
    way: Callable[[nn.Module], list[torch.Tensor]], net: nn.Module, small: nn.Module, one: Architecture
) -> float | str:
    """Return how far `small` is from itself by another way; a reason where the original cannot go it either."""
    try:
        given = way(small)
    except Exception:
        try:
            way(net)
        except Exception as error:  # noqa: BLE001  # the original cannot either
            return f"nor the original ({type(error).__name__})"
        raise
    return apart(given, tensors_of(run(small, one.batch)))
