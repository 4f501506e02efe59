"""Where layers stand in the graph of one forward pass, so that gradients by what they give can be asked for.

What a layer gives may be overwritten by the next operation, an in-place ReLU say. Its tensor is then another node of
the graph, and its gradient is not the one asked for: so the node is noted while the layer's hook runs. What has no
node, as nothing before it has gradients, and what is a view, whose node is passed by once it is overwritten, is copied
first. Weights are asked for no gradient: frozen and quantised ones have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import first_argument
from dalr_stream.network.capture.routed import Places, Routes
from dalr_stream.network.layers.spec import LayerSpec, module_of
from dalr_stream.numerics.rows.streams import module_name


@dataclass(frozen=True, slots=True)
class Given:
    """What one call of a layer gave."""

    edge: GradientEdge
    """Its place in the graph, as it was then."""
    form: torch.Tensor
    """A tensor of its shape, dtype and device, without memory of its own."""
    places: Places | None
    """Where its rows come from, of a layer that a router sends rows to."""

    def gradient(self, found: torch.Tensor | None) -> torch.Tensor:
        """Return the gradient by it, which is 0 where nothing leads back to it."""
        return torch.zeros_like(self.form) if found is None else found


Edges = dict[str, list[Given]]
"""By stream, call after call."""


@contextmanager
def edges_of(model: nn.Module, layers: Sequence[LayerSpec], routed: Sequence[str], samples: int) -> Iterator[Edges]:
    """Run the network with gradients, and note what each layer gives; `routed` has the streams that are routed to.

    Raises InvalidInputError for a layer that runs where gradients are turned off.
    """
    routes = Routes(model, (layer.name for layer in layers if layer.stream in routed))
    modules: Edges = {module_name(layer.name): [] for layer in layers}
    with _gradients_by_outputs_alone(model), routes.watching(), ExitStack() as stack:
        for layer in {module_name(layer.name): layer for layer in layers}.values():
            calls = modules[module_name(layer.name)]
            hook = _noting(layer.name, calls, routes if layer.stream in routed else None, samples)
            module = module_of(model, module_name(layer.name))
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield {layer.stream: modules[module_name(layer.name)] for layer in layers}


def _noting(layer: str, calls: list[Given], routes: Routes | None, samples: int) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() or output.is_inference():
            raise InvalidInputError(
                f"layer '{layer}': runs under torch.no_grad() or in inference mode within the network, so that what it "
                "gives has no gradient: take that out of the network's forward pass (use_reentrant=True of "
                "torch.utils.checkpoint does it too), or watch no gradients of it"
            )
        places = None
        if routes is not None:
            places = routes.places(layer, first_argument(arguments, keywords), samples)
        if not output.requires_grad:
            output = output.detach().requires_grad_().clone()
        elif output._is_view():  # noqa: SLF001  # torch has no public name for it
            output = output.clone()
        calls.append(Given(get_gradient_edge(output), output.new_empty(()).expand(output.shape), places))
        return output

    return hook


@contextmanager
def _gradients_by_outputs_alone(model: nn.Module) -> Iterator[None]:
    """Turn gradients on, and off for weights: what they would need is not kept then."""
    parameters = list(model.parameters())
    if any(parameter.is_inference() for parameter in parameters):
        made = next(name for name, parameter in model.named_parameters() if parameter.is_inference())
        raise InvalidInputError(
            f"gradients: '{made}' of the network was made in inference mode, which nothing can go back through: build "
            "or load the network outside torch.inference_mode(), or watch no gradients"
        )
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)  # noqa: FBT003  # torch's own
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)  # noqa: FBT003  # torch's own
