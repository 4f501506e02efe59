"""The proof that a group of channels is all that happens to them, on a batch.

Each producer's odd channels are disturbed. What the readers get may differ in those channels alone; they are given what
they would have got, and the network's output must then be as it was. So nothing mixes the channels on the way, and
nothing but the readers reads them, whatever operations there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture import call, first_argument
from dalr_stream.network.kinds import CONVOLUTIONS
from dalr_stream.network.reading import without_gradients
from dalr_stream.numerics.channels import ChannelGroup, ChannelSpan

ROUNDING = 1e-5
"""Of what is compared, relative to its largest entry: far above that of float32, far below a disturbance."""


def require_proof(model: nn.Module, group: ChannelGroup, example: Any) -> None:
    """Raise UnsupportedLayerError where the channels are mixed on the way to a reader, or read by anything else.

    Cost: a forward pass of `example`, and one for each producer.
    """
    _Proof(model, group, example).require()


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors of floating point in whatever a network gives."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    members = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for member in members for tensor in tensors_in(member)]


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Let the network run without chance and with gradients to be followed, and put everything back."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, required in wanted.items():
            parameter.requires_grad_(required)


class _Proof:
    """Disturbs each producer's odd channels, and watches where that arrives."""

    def __init__(self, model: nn.Module, group: ChannelGroup, example: Any) -> None:
        self._model = model
        self._group = group
        self._example = example
        self._clean: dict[str, torch.Tensor] = {}

    def require(self) -> None:
        """Raise UnsupportedLayerError where the group is not all that happens to the channels."""
        expected = self._run(None)
        for producer in self._group.producers:
            found = self._run(producer)
            if not all(bool(_same(a, b).all()) for a, b in zip(found, expected, strict=True)):
                readers = ", ".join(f"'{reader.span.layer}'" for reader in self._group.readers)
                raise UnsupportedLayerError(
                    f"layer '{producer}': its channels cannot be pruned: the network's output depends on them by other "
                    f"ways than through {readers}"
                )

    def _run(self, disturbed: str | None) -> list[torch.Tensor]:
        """Return the network's outputs; the readers are given what they read undisturbed."""
        model = self._model
        with ExitStack() as stack:
            stack.enter_context(quiet(model))
            for reader in self._group.readers:
                hook = self._watching(reader.span, disturbed)
                module = model.get_submodule(reader.span.layer)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if disturbed is not None:
                module = model.get_submodule(disturbed)
                stack.callback(module.register_forward_hook(_disturb).remove)
            with without_gradients():
                return [tensor.clone() for tensor in tensors_in(call(model, self._example))]

    def _watching(self, span: ChannelSpan, disturbed: str | None) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            tensor = first_argument(arguments, keywords)
            if disturbed is None:
                self._clean[span.layer] = tensor.clone()
                return None
            clean = self._clean[span.layer]
            features = _channels_last(module, tensor)
            changed = ~_same(features, _channels_last(module, clean)).flatten(0, -2).all(0)
            odd = torch.arange(self._group.channels, device=changed.device).remainder(2).bool()
            allowed = torch.zeros_like(changed)
            stop = span.start + span.block * self._group.channels
            allowed[span.start : stop] = odd.repeat_interleave(span.block)
            if bool((changed & ~allowed).any()):
                raise UnsupportedLayerError(
                    f"layer '{disturbed}': its channels cannot be pruned: on the way to '{span.layer}' they are mixed "
                    "with others"
                )
            if arguments:
                return (clean.clone(), *arguments[1:]), keywords
            name = next(iter(keywords))
            return arguments, {**keywords, name: clean.clone()}

        return hook


def _same(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Compare entry by entry: equal but for rounding, which a kernel may do otherwise in other memory."""
    scale = float(expected.abs().nan_to_num().max()) if expected.numel() else 0.0
    return torch.isclose(found, expected, rtol=0.0, atol=ROUNDING * (1 + scale), equal_nan=True)


def _disturb(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    """Add noise, as large as what is there, to every other channel."""
    disturbed = output.clone()
    channels = _channels_last(module, disturbed)[..., 1::2]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(channels.shape, generator=generator).to(output)
    channels += noise * (1 + output.abs().max())
    return disturbed


def _channels_last(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.movedim(1, -1) if isinstance(module, CONVOLUTIONS) else tensor
