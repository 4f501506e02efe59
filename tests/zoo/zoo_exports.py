"""A compressed network by other ways than calling it: writing words, compiled, as ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from zoo_case import Architecture
from zoo_rows import SINGLE, apart, layers_that_call_one_another, run, tensors_of


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

    given = as_the_original(run_compiled, net, small)
    return given if isinstance(given, str) else apart(given, tensors_of(run(small, one.batch)))


class Tensors(nn.Module):
    """A network as a function of tensors alone, by position, as exporting wants it."""

    def __init__(self, net: nn.Module, names: list[str] | None) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        outputs = self.net(**dict(zip(self.names, inputs, strict=True))) if self.names else self.net(*inputs)
        return tensors_of(outputs)


def exported(net: nn.Module, small: nn.Module, one: Architecture) -> float | str:
    """Return how far the ONNX model is, as the reference evaluator of ONNX computes it.

    A reason where the original cannot be exported either; "exported" where the evaluator cannot compute the original's
    model either, and the checker of ONNX finds nothing wrong.
    """
    names = list(one.batch) if isinstance(one.batch, Mapping) else None
    inputs = tuple(one.batch.values()) if names else (one.batch,)

    def as_onnx(network: nn.Module) -> onnx.ModelProto:
        with layers_that_call_one_another(), torch.no_grad():
            program = torch.onnx.export(Tensors(network, names), inputs, dynamo=True, verbose=False)
        onnx.checker.check_model(program.model_proto)
        return program.model_proto

    def computed(model: onnx.ModelProto) -> list[torch.Tensor]:
        feeds = {port.name: value.numpy() for port, value in zip(model.graph.input, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(value)) for value in ReferenceEvaluator(model).run(None, feeds)]

    model = as_the_original(as_onnx, net, small)
    if isinstance(model, str):
        return model
    given = as_the_original(lambda network: computed(model if network is small else as_onnx(network)), net, small)
    if isinstance(given, str):
        return "exported"
    off = apart(given, tensors_of(run(small, one.batch)))
    own = apart(computed(as_onnx(net)), tensors_of(run(net, one.batch))) if off > SINGLE else 0.0
    return off if own <= SINGLE else f"nor the original ({own:.0e} off)"


def as_the_original(way: Callable[[nn.Module], Any], net: nn.Module, small: nn.Module) -> Any:
    """Return what `small` gives by another way; a reason where the original cannot go it either."""
    try:
        return way(small)
    except Exception:
        try:
            way(net)
        except Exception as error:  # noqa: BLE001  # the original cannot either
            return f"nor the original ({type(error).__name__})"
        raise
