"""What a compressed network was before, in numbers, and what became of each layer.

The original's numbers are taken when it is compressed, and again when a saved one is loaded, from the network that
is built then; they stay with the compressed network, however often it is compressed. What became of the layers is read
off the network itself, so it is true of any surgery.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from dalr_stream.network.layers.kinds import CONVOLUTIONS, matrix_of, why_not

ORIGIN_ATTRIBUTE = "compressed_from"


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer: outputs x inputs, a convolution's inputs being its patch; weights and biases together."""

    outputs: int
    inputs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one layer."""

    layer: str
    before: LayerFigures
    after: str
    """In words."""
    parameters: int
    """That are left."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The network as it was."""

    parameters: int
    bytes: int
    layers: Mapping[str, LayerFigures]
    """Of every linear layer and convolution, by name."""

    @classmethod
    def of(cls, model: nn.Module) -> Origin:
        """Return what is known of the network that `model` was made from; its own numbers where it was not."""
        known: Origin | None = getattr(model, ORIGIN_ATTRIBUTE, None)
        if known is not None:
            return known
        layers = {name: _figures(module) for name, module in model.named_modules() if _is_layer(module)}
        return cls(_count(model), sum(parameter.nbytes for parameter in model.parameters()), layers)

    def changes(self, model: nn.Module) -> Iterator[Change]:
        """Yield the layers that have another shape in `model`, in the original's order."""
        modules = dict(model.named_modules())
        for name, before in self.layers.items():
            module = modules.get(name)
            if module is None:
                yield Change(name, before, "gone", 0)
            elif not _is_layer(module):
                parts = [_figures(part) for part in module.modules() if _is_layer(part)]
                shapes = ", ".join(f"{part.outputs} x {part.inputs}" for part in parts)
                yield Change(name, before, f"a pair, {shapes}", _count(module))
            elif (after := _figures(module)) != before:
                yield Change(name, before, _kept(before, after), after.parameters)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) or why_not(module) is None


def _figures(module: nn.Module) -> LayerFigures:
    outputs, inputs = matrix_of(module).shape
    return LayerFigures(outputs, inputs, _count(module))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _kept(before: LayerFigures, after: LayerFigures) -> str:
    sizes = [("outputs", before.outputs, after.outputs), ("inputs", before.inputs, after.inputs)]
    words = [f"{left} of {whole} {what}" for what, whole, left in sizes if left != whole]
    return " and ".join(words) or "another bias"
