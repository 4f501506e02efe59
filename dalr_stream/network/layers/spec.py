r"""Which layers of a network are watched, and what identifies a network.

A pattern is a module's name, a glob over names (`classifier.[03]`), a regular expression over names (`re:fc\d`), or
a module class. A pattern that matches nothing is an error with the nearest names, never an empty list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import InvalidInputError, LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.layers.groups import part_of, parts_of
from dalr_stream.network.layers.kinds import (
    SUPPORTED,
    channels_given,
    channels_read,
    has_weights,
    matrix_of,
    require_supported,
    why_not,
)
from dalr_stream.network.layers.patterns import Pattern, listed, matches, nearest
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.rows.streams import Side, module_name, require_name, stream_name
from dalr_stream.numerics.statistics.channels import ChannelGroup


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer that can be watched and compressed: y = W x + b with W outputs x inputs, at every position.

    Attributes
    ----------
    name
        Name of the module; of one group of a convolution, `name@group0` and so on.
    kind
        Class of the module.
    inputs
        Inputs d: columns of the weight as a matrix.
    outputs
        Outputs m: rows of the weight.
    side
        What of the layer is recorded.
    channels
        Number of channels recorded, where `side` is channels.
    repeats
        Places in which a sample's features have all of these channels: of a flattened image that had them last.
    group
        The layers pruned together with the channels that this one gives, where that is known and possible.
    unprunable
        Why its channels cannot be pruned; empty where they can be, or nothing is known.
    heads
        The attention whose output layer this is, where its heads can get narrower and somebody asked.
    no_heads
        Why they cannot.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    side: Side = Side.INPUTS
    channels: int = 0
    repeats: int = 1
    group: ChannelGroup | None = None
    unprunable: str = ""
    heads: HeadLayout | None = None
    no_heads: str = ""

    @property
    def stream(self) -> str:
        """Name of the watched rows and of their moments: the layer's own for inputs, `name@outputs` for outputs."""
        return stream_name(self.name, self.side)

    @property
    def placed_as(self) -> str:
        """The stream whose rows stand where these do: the outputs for what is added to them, else their own."""
        return stream_name(self.name, Side.OUTPUTS) if self.side is Side.RESIDUAL else self.stream

    @property
    def features(self) -> int:
        """Width of the watched rows."""
        widths = {Side.INPUTS: self.inputs, Side.CHANNELS: self.channels}
        return widths.get(self.side, self.outputs)

    @property
    def at_outputs(self) -> bool:
        """Whether the watched rows stand where the layer's outputs do."""
        return self.side in (Side.OUTPUTS, Side.GRADIENTS)

    @property
    def parameters(self) -> int:
        """Weights of the layer, without its bias."""
        return self.inputs * self.outputs

    @property
    def break_even_rank(self) -> int:
        """The largest rank at which a factor pair has no more weights than the layer."""
        return self.parameters // (self.inputs + self.outputs)


def select_layers(
    model: nn.Module, patterns: Iterable[Pattern], *, side: Side | str = Side.INPUTS
) -> tuple[LayerSpec, ...]:
    r"""Return the layers that the patterns match, in the network's order, each once.

    Each group of a convolution is a layer of its own, `name@group0`, `name@group1`, ... What a pattern matches besides
    and cannot be compressed stays out; `unsupported_layers` says why.

    Parameters
    ----------
    model
        The network.
    patterns
        Names, globs (`"features.*"`), regular expressions (`r"re:fc\d"`) or module classes, one or several.
    side
        "inputs", what the layers read; or "outputs", what they give, W x + b with the bias in it: m features instead of
        d, which is all that anchored DALR needs; or "gradients", of a loss by those outputs (`RowRule.gradients`). Rows
        and moments go by `name@outputs` and `name@gradients`; to watch several sides of some layers, add the results.

    Returns
    -------
    tuple of LayerSpec
        One for each layer, or each group of a convolution.

    Raises
    ------
    LayerNotFoundError
        For a pattern that matches no module, with the nearest names.
    UnsupportedLayerError
        For a pattern that matches only modules which cannot be compressed.

    See Also
    --------
    dalr_stream.watch : these layers, and the readers of their channels.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(layer.name, layer.inputs, layer.outputs) for layer in ds.network.select_layers(model, ["*"])]
    [('0', 4, 8), ('2', 8, 2)]
    """
    modules = {name: module for name, module in model.named_modules() if name}
    side = parse_choice(Side, side, "side")
    supported: set[str] = set()
    for pattern in listed(patterns):
        supported |= _supported(pattern, matches(pattern, modules), modules)
    return tuple(
        _spec(part, part_of(part, module), side)
        for name, module in modules.items()
        if name in supported
        for part in parts_of(name, module)
    )


def unsupported_layers(model: nn.Module, patterns: Iterable[Pattern]) -> tuple[str, ...]:
    """Return the layers with weights that the patterns match but that cannot be compressed, each with the reason.

    Parameters
    ----------
    model
        The network.
    patterns
        Names, globs, regular expressions or module classes, as for `watch`.

    Returns
    -------
    tuple of str
        One sentence for each layer; empty where all can be compressed.

    Raises
    ------
    LayerNotFoundError
        For a pattern that matches no module, with the nearest names.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Bilinear(2, 2, 2)])
    >>> ds.unsupported_layers(model, ["*"])
    ("layer '1' is left out: it is a Bilinear",)
    """
    modules = {name: module for name, module in model.named_modules() if name}
    matched = {name for pattern in listed(patterns) for name in matches(pattern, modules)}
    reasons = {name: why_not(module) for name, module in modules.items() if name in matched and has_weights(module)}
    return tuple(f"layer '{name}' is left out: {reason}" for name, reason in reasons.items() if reason)


def whole_outputs(model: nn.Module, name: str) -> LayerSpec:
    """Return what the layer called `name` gives as one stream, that of all groups of a convolution."""
    module = module_of(model, name)
    if channels_given(module) is None:
        require_supported(name, module)
    outputs, inputs = matrix_of(module).shape
    return LayerSpec(name, type(module).__name__, inputs, outputs, Side.OUTPUTS)


def layer_of(model: nn.Module, name: str) -> nn.Module:
    """Return the layer called `name`, of any kind that can be compressed; a group of one as a layer of its own."""
    module = part_of(name, module_of(model, module_name(name)))
    require_supported(name, module)
    return module


def module_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module called `name`; raises LayerNotFoundError with the nearest names."""
    try:
        found = model.get_submodule(name)
    except AttributeError:
        found = model
    if found is model:
        names = [known for known, _ in model.named_modules() if known]
        raise LayerNotFoundError(f"there is no layer '{name}'; nearest: {nearest(name, names)}")
    return found


def weights_of(model: nn.Module, name: str) -> tuple[NDArray[np.floating], NDArray[np.floating] | None]:
    """Return weight and bias of a layer as numpy arrays.

    Parameters
    ----------
    model
        The network.
    name
        Of the layer, or of a group of a convolution.

    Returns
    -------
    tuple
        Weight (m, d), of a convolution with d = channels times kernel positions; bias (m,), None where there is none.

    Raises
    ------
    LayerNotFoundError
        Where there is no layer of that name.

    See Also
    --------
    Store.weights : the same from a store, without the network.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8))
    >>> weight, bias = ds.network.weights_of(model, "0")
    >>> weight.shape, bias.shape
    ((8, 4), (8,))
    """
    module = layer_of(model, name)
    bias: Any = module.bias
    return to_numpy(matrix_of(module)), None if bias is None else to_numpy(bias)


def to_numpy(tensor: torch.Tensor, *, copy: bool = True) -> NDArray[np.floating]:
    """Return it as float32, or float64 where it is float64: half precision widens without loss.

    A copy, unless `copy` is False: then it shares the memory of a tensor that lies in main memory as it is wanted.
    """
    if tensor.is_meta:
        raise InvalidInputError("weights on the meta device have no numbers: load the network whole")
    if tensor.is_complex():
        raise InvalidInputError(f"weights and activations must be real numbers, got a tensor of {tensor.dtype}")
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(device="cpu", dtype=wide, copy=copy).numpy()


def to_host(rows: Any) -> NDArray[Any]:
    """Return rows, array or tensor, as an array: half precision widens without loss, and nothing else is copied."""
    return to_numpy(rows, copy=False) if isinstance(rows, torch.Tensor) else np.asarray(rows)


def _supported(pattern: Pattern, names: Sequence[str], modules: dict[str, nn.Module]) -> set[str]:
    supported = {name for name in names if why_not(modules[name]) is None}
    if not supported:
        shown_first = sorted(names, key=lambda name: not has_weights(modules[name]))[:5]  # then what holds them
        reasons = ", ".join(f"'{name}' ({why_not(modules[name])})" for name in shown_first)
        shown = pattern if isinstance(pattern, str) else pattern.__name__
        raise UnsupportedLayerError(f"pattern '{shown}': matches nothing that is {SUPPORTED}: {reasons}")
    return supported


def _spec(name: str, module: nn.Module, side: Side) -> LayerSpec:
    require_supported(name, module)
    require_name(name, "layer")
    if "@" in module_name(name):
        raise UnsupportedLayerError(
            f"layer '{name}': '@' is reserved for stream names such as 'fc6@outputs'; rename the module"
        )
    outputs, inputs = matrix_of(module).shape
    channels = channels_read(module) if side is Side.CHANNELS else 0
    return LayerSpec(name, type(module).__name__, inputs, outputs, side, channels)
