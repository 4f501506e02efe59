"""Who reads a layer's outputs: the layers a selection must shrink together with it.

Found on the network's torch.fx graph by walking from the layer through operations that act on each node by itself.
Anything else on the way, or a network that cannot be traced, is an error that names it: a selection that missed a
consumer would be wrong in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from dalr_stream.errors import UnsupportedLayerError

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh,
    nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus, nn.Dropout, nn.AlphaDropout, nn.Identity,
)  # fmt: skip
_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({
    torch.relu, torch.sigmoid, torch.tanh, functional.relu, functional.relu6, functional.leaky_relu, functional.elu,
    functional.selu, functional.gelu, functional.silu, functional.mish, functional.hardswish, functional.softplus,
    functional.dropout,
})  # fmt: skip
_METHODS = frozenset({"relu", "sigmoid", "tanh", "contiguous"})


def consumers_of(model: nn.Module, producer: str) -> tuple[str, ...]:
    """Return the names of the linear layers that read the outputs of `producer`, all through the same tensor.

    Raises UnsupportedLayerError where the network cannot be traced, or something else reads the outputs.
    """
    if not isinstance(model.get_submodule(producer), nn.Linear):
        raise UnsupportedLayerError(
            f"layer '{producer}': only the nodes of linear layers can be pruned, it is a "
            f"{type(model.get_submodule(producer)).__name__}"
        )
    graph = trace(model, producer)
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == producer]
    if len(calls) != 1:
        raise UnsupportedLayerError(
            f"layer '{producer}': a selection needs it called once, it is called {len(calls)} times"
        )
    consumers: list[str] = []
    sources: set[fx.Node] = set()
    pending = [(calls[0], user) for user in calls[0].users]
    while pending:
        source, node = pending.pop(0)
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Linear):
            times = sum(other.op == "call_module" and other.target == node.target for other in graph.nodes)
            if times != 1:  # narrowed for this reader, it would be wrong for its other inputs
                raise UnsupportedLayerError(
                    f"layer '{producer}': its nodes cannot be pruned, because '{node.target}', which reads them, is "
                    f"called {times} times"
                )
            consumers.append(str(node.target))
            sources.add(source)
        elif _acts_on_each_node(model, node):
            pending += [(node, user) for user in node.users]
        else:
            raise UnsupportedLayerError(
                f"layer '{producer}': its nodes cannot be pruned, because {_describe(model, node)} reads them"
            )
    if len(sources) != 1:
        raise UnsupportedLayerError(
            f"layer '{producer}': its nodes are read through {len(sources)} different tensors, a selection needs one"
        )
    return tuple(consumers)


def trace(model: nn.Module, producer: str) -> fx.Graph:
    """Return the network's graph; `producer` names the layer in the message."""
    try:
        return fx.Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, NameError) as error:
        raise UnsupportedLayerError(
            f"layer '{producer}': what reads its outputs cannot be told, because torch.fx cannot trace the network "
            f"({error}); low-rank methods need no tracing"
        ) from error


def _acts_on_each_node(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _MODULES)
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return node.op == "call_method" and node.target in _METHODS


def _describe(model: nn.Module, node: fx.Node) -> str:
    if node.op == "output":
        return "the network's own output"
    if node.op == "call_module":
        return f"'{node.target}' ({type(model.get_submodule(str(node.target))).__name__})"
    return f"the operation '{getattr(node.target, '__name__', node.target)}'"
