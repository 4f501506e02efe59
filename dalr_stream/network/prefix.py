"""Runs the part of a network before a layer once for each input, however many networks differ only after it.

Evaluating a layer at many ranks runs the same layers before it again and again. They are run once on the network's
torch.fx graph and their values kept, as long as they fit; the rest is run from there with each compressed network's own
modules. The same operations on the same values: the outputs are those of the whole network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers import tensor_digest

CACHE_BYTES = 256 * 2**20


class PrefixCache:
    """The values that enter the first of some layers, by the digest of the network's input."""

    def __init__(self, model: nn.Module, *layers: str, limit_bytes: int = CACHE_BYTES) -> None:
        """Trace `model`; raises UnsupportedLayerError where torch.fx cannot, or the network takes several inputs."""
        self._model = model
        self._graph = _trace(model)
        nodes = list(self._graph.nodes)
        taken = [str(node.target) for node in nodes if node.op == "placeholder"]
        if len(taken) != 1 or taken[0].startswith("*"):  # traced as if each were given: a mask that is None is not None
            raise UnsupportedLayerError(f"the network may take {', '.join(taken)}, and values are kept by one input")
        first = next(i for i, node in enumerate(nodes) if node.op == "call_module" and node.target in layers)
        self._before = nodes[:first]
        self._needed = [node for node in self._before if any(user in nodes[first:] for user in node.users)]
        self._kept: dict[str, dict[fx.Node, Any]] = {}
        self._room = limit_bytes

    def attach(self, small: nn.Module) -> nn.Module:
        """Return `small`, which differs from the model only from those layers on, with its first part run from here."""
        return _Continued(self, small)

    def values(self, inputs: torch.Tensor) -> dict[fx.Node, Any]:
        """Return the value of every node before the layer that anything after it reads; None for the others."""
        key = tensor_digest(inputs)
        if key not in self._kept:
            values = self._run(inputs)
            size = sum(value.nbytes for value in values.values() if isinstance(value, torch.Tensor))
            if size > self._room:
                return values
            self._room -= size
            self._kept[key] = values
        return dict(self._kept[key])

    def finish(self, small: nn.Module, values: dict[fx.Node, Any]) -> Any:
        """Run the rest of the graph with the modules of `small`."""
        return fx.Interpreter(small, graph=self._graph).run(initial_env=values)

    def _run(self, inputs: torch.Tensor) -> dict[fx.Node, Any]:
        interpreter = fx.Interpreter(self._model, graph=self._graph)
        interpreter.args_iter = iter((inputs,))
        for node in self._before:
            interpreter.env[node] = interpreter.run_node(node)
        return {node: interpreter.env[node] if node in self._needed else None for node in self._before}


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, NameError) as error:
        raise UnsupportedLayerError(f"torch.fx cannot trace the network ({error})") from error


class _Continued(nn.Module):
    def __init__(self, cache: PrefixCache, small: nn.Module) -> None:
        super().__init__()
        self._cache = cache
        self.small = small

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        """Give what the whole network would for its one input."""
        (only,) = (*inputs, *named.values())
        return self._cache.finish(self.small, self._cache.values(only))
