"""What surgery does to a network, as plain data: the shapes change here, the numbers elsewhere.

A `SurgeryPlan` turns a freshly built network into the shape of a compressed one, so that its weights can be loaded
strictly; `surgery.compress` uses the same steps and then fills in the numbers. Plans are written as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.groups import part_of, parts_of
from dalr_stream.network.layers.kinds import carries_channels, channels_given, channels_read, factor_pair, matrix_of
from dalr_stream.network.layers.spec import layer_of, module_of
from dalr_stream.network.surgery.kept_rotations import NarrowTable, holder_of, narrow_tables
from dalr_stream.network.surgery.narrowing import keep_carried, keep_outputs, like, map_inputs
from dalr_stream.numerics.statistics.channels import ChannelSpan


@dataclass(frozen=True, slots=True)
class SplitLayer:
    """A layer becomes a pair: inputs -> rank without bias, rank -> outputs; a convolution's second one is 1 x 1.

    In a convolution of several groups the rank is that of each.
    """

    layer: str
    rank: int
    bias: bool

    def __post_init__(self) -> None:
        _require_names(self.layer)
        _require_size(self.layer, "rank", self.rank)

    def apply(self, model: nn.Module) -> None:
        """Replace the layer by an untrained pair of the same dtype and device."""
        module = layer_of(model, self.layer)
        part = part_of(parts_of(self.layer, module)[0], module)
        most = min(matrix_of(part).shape)
        if self.rank > most:
            raise UnsupportedLayerError(f"layer '{self.layer}': rank must lie in 1..{most}, got {self.rank}")
        replace(model, self.layer, factor_pair(module, self.rank, bias=self.bias))

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> SplitLayer:
        """Read what `dataclasses.asdict` gave."""
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class KeepNodes:
    """A layer keeps some of its nodes, or channels, and all that gives, carries or reads the same ones narrows with it.

    Spans are where the channels lie when the step is applied.
    """

    layer: str
    channels: int
    kept: int
    producers: tuple[str, ...]
    carriers: tuple[ChannelSpan, ...]
    readers: tuple[ChannelSpan, ...]
    reader_bias: tuple[bool, ...]

    def __post_init__(self) -> None:
        _require_names(self.layer, *self.producers)
        _require_size(self.layer, "kept", self.kept)
        _require_size(self.layer, "channels", self.channels)
        if not self.producers or not self.readers:
            raise InvalidInputError(f"layer '{self.layer}': its channels must be given by a layer and read by another")
        if self.kept > self.channels or len(self.readers) != len(self.reader_bias):
            raise InvalidInputError(
                f"layer '{self.layer}': kept must be at most the {self.channels} channels, got {self.kept}, and "
                f"reader_bias must answer for {len(self.readers)} readers, got {len(self.reader_bias)}"
            )

    def apply(self, model: nn.Module) -> None:
        """Narrow the shapes; which channels stay, and what readers do with them, is in the weights."""
        self._require_fits(model)  # before anything of a size that was read is made
        any_of_them = np.arange(self.kept)
        nothing_restored, no_offset = np.eye(self.channels, self.kept), np.zeros(self.channels)
        with np.errstate(invalid="ignore", over="ignore"):  # weights not loaded yet are whatever lay in memory
            self.narrow(model, any_of_them, nothing_restored, no_offset)

    def is_applied(self, model: nn.Module) -> bool:
        """Tell whether the layers that give the channels give as many as stay; they gave more before."""
        layers = (layer_of(model, last_layer(model, producer)) for producer in self.producers)
        return self.kept < self.channels and all(channels_given(layer) == self.kept for layer in layers)

    def narrow(
        self, model: nn.Module, kept: NDArray[np.int64], restore: NDArray[np.float64], offset: NDArray[np.float64]
    ) -> None:
        """Replace each member by a narrower one of the same numbers, the readers' weight by W `restore`."""
        for producer in self.producers:
            name = last_layer(model, producer)
            replace(model, name, keep_outputs(layer_of(model, name), kept))
        for span in self.carriers:
            module = _carrier(model, span.layer)
            gone = np.delete(span.places(self.channels), kept, axis=0)
            stay = np.delete(np.arange(channels_read(module)), gone)
            replace(model, span.layer, keep_carried(module, stay))
        for span, bias in zip(self.readers, self.reader_bias, strict=True):
            name = first_layer(model, span.layer)
            replace(model, name, map_inputs(layer_of(model, name), span, restore, offset, bias=bias))

    def _require_fits(self, model: nn.Module) -> None:
        """Raise UnsupportedLayerError or LayerNotFoundError where a member does not hold the channels."""
        for producer in self.producers:
            name = last_layer(model, producer)
            self._require(name, channels_given(layer_of(model, name)) == self.channels)
        modules = [(span, _carrier(model, span.layer)) for span in self.carriers]
        modules += [(span, layer_of(model, first_layer(model, span.layer))) for span in self.readers]
        for span, module in modules:
            self._require(span.layer, span.stop(self.channels) <= channels_read(module))

    def _require(self, name: str, fits: bool) -> None:  # noqa: FBT001  # what is asked of the layer
        if not fits:
            raise UnsupportedLayerError(
                f"layer '{name}': it does not hold the {self.channels} channels of '{self.layer}' that are narrowed"
            )

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> KeepNodes:
        """Read what `dataclasses.asdict` gave."""
        spans = {name: tuple(ChannelSpan(**span) for span in plain[name]) for name in ("carriers", "readers")}
        return cls(**{**plain, **spans})


@dataclass(frozen=True, slots=True)
class NarrowHeads:
    """The heads of an attention get fewer dimensions: its four layers, and what its modules know of their number."""

    layer: str
    """The output layer."""
    queries: str
    keys: str
    values: str
    heads: int
    groups: int
    before: int
    """Dimensions of each head."""
    size: int
    bias: bool
    """Whether the output layer has one then."""
    attributes: tuple[tuple[str, str, int], ...]
    """Module, attribute, and what it is then."""
    tables: tuple[NarrowTable, ...] = ()
    """What positions are rotated by."""

    def __post_init__(self) -> None:
        _require_names(
            self.layer, self.queries, self.keys, self.values, *(name for one in self.attributes for name in one[:2])
        )
        for name in ("heads", "groups", "before", "size"):
            _require_size(self.layer, name, getattr(self, name))
        for _, attribute, value in self.attributes:
            _require_size(self.layer, attribute, value)

    def apply(self, model: nn.Module) -> None:
        """Narrow the shapes, and set the attributes."""
        given = {self.queries: self.heads, self.keys: self.groups, self.values: self.groups}
        for name, heads in given.items():
            layer: Any = layer_of(model, name)
            outputs, inputs = matrix_of(layer).shape
            self._require(name, outputs == heads * self.before)
            replace(model, name, like(layer, inputs=inputs, outputs=heads * self.size, bias=layer.bias is not None))
        output = layer_of(model, self.layer)
        outputs, inputs = matrix_of(output).shape
        self._require(self.layer, inputs == self.heads * self.before)
        replace(model, self.layer, like(output, inputs=self.heads * self.size, outputs=outputs, bias=self.bias))
        for name, attribute, value in self.attributes:
            holder = holder_of(model, name)
            known = vars(holder).get(attribute)
            self._require(name, isinstance(known, int) and not isinstance(known, bool), f"a number as '{attribute}'")
            setattr(holder, attribute, value)
        narrow_tables(model, self.tables)

    def _require(self, name: str, fits: bool, what: str = "") -> None:  # noqa: FBT001  # what is asked of the layer
        if not fits:
            needed = what or f"heads of {self.before} features"
            raise UnsupportedLayerError(
                f"layer '{name}': it does not have {needed}, which those of '{self.layer}' need"
            )

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> NarrowHeads:
        """Read what `dataclasses.asdict` gave."""
        attributes = tuple(map(tuple, plain["attributes"]))
        if any(len(one) != len(("module", "attribute", "value")) for one in attributes):
            raise TypeError("an attribute is given by its module, its name and its value")
        tables = tuple(map(NarrowTable.of_plain, plain.get("tables", ())))
        return cls(**{**plain, "attributes": attributes, "tables": tables})


Step = SplitLayer | KeepNodes | NarrowHeads
_STEPS: dict[str, type[Step]] = {"split": SplitLayer, "keep": KeepNodes, "heads": NarrowHeads}


@dataclass(frozen=True, slots=True)
class SurgeryPlan:
    """The steps, in the order they are applied."""

    steps: tuple[Step, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Give `model` the compressed network's shape, in place."""
        for step in self.steps:
            step.apply(model)

    def is_applied(self, model: nn.Module) -> bool:
        """Tell whether a network has the shape already: built from a configuration of its narrower layers."""
        return bool(self.steps) and all(isinstance(step, KeepNodes) and step.is_applied(model) for step in self.steps)

    def to_plain(self) -> list[dict[str, Any]]:
        """Return the plan as JSON-like values."""
        names = {kind: name for name, kind in _STEPS.items()}
        return [{"step": names[type(step)], **asdict(step)} for step in self.steps]

    @classmethod
    def from_plain(cls, plain: Sequence[dict[str, Any]]) -> SurgeryPlan:
        """Read what `to_plain` gave."""
        steps: list[Step] = []
        for entry in plain:
            if not isinstance(entry, dict):
                raise InvalidInputError(f"plan: a step must be a mapping, got {entry!r}")
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
            kind = _STEPS.get(str(fields.pop("step", None)))
            if kind is None:
                raise InvalidInputError(f"plan: a step must be one of {', '.join(_STEPS)}, got {entry.get('step')!r}")
            try:
                steps.append(kind.of_plain(fields))
            except (TypeError, KeyError) as error:
                raise InvalidInputError(f"plan: step {entry} cannot be read: {error}") from None
        return cls(tuple(steps))


def _require_size(layer: str, name: str, value: object) -> None:
    """Plans are also read from files: a size must be one before a layer of it is made."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"layer '{layer}': {name} must be a positive integer, got {value!r}")


def _require_names(*names: object) -> None:
    for name in names:
        if not isinstance(name, str):
            raise InvalidInputError(f"plan: the name of a layer must be text, got {name!r}")


def first_layer(model: nn.Module, name: str) -> str:
    """Return the name of the layer that reads the inputs of `name`, split or not."""
    return f"{name}.0" if isinstance(module_of(model, name), nn.Sequential) else name


def last_layer(model: nn.Module, name: str) -> str:
    """Return the name of the layer that gives the outputs of `name`, split or not."""
    return f"{name}.1" if isinstance(module_of(model, name), nn.Sequential) else name


def _carrier(model: nn.Module, name: str) -> nn.Module:
    module = module_of(model, name)
    if not carries_channels(module):
        raise UnsupportedLayerError(f"layer '{name}': must carry channels one by one, it is a {type(module).__name__}")
    return module


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the one called `name`: in its mode, and frozen where that, or its weight, is."""
    parent, _, child = name.rpartition(".")
    old = model.get_submodule(name)
    frozen = {key: not parameter.requires_grad for key, parameter in old.named_parameters(recurse=False)}
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(not frozen.get(key, frozen.get("weight", False)))
    setattr(model.get_submodule(parent), child, module.train(old.training))
    _leave_fused_kernels(model, name)


def _leave_fused_kernels(model: nn.Module, name: str) -> None:
    """Let the transformer encoders around a replaced layer call it: their fused kernel reads its weight alone."""
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        around: Any = model.get_submodule(parent)
        if isinstance(around, nn.TransformerEncoderLayer):
            around.activation_relu_or_gelu = 0  # asked for by the fused kernel alone: forward calls `activation`
        elif isinstance(around, nn.TransformerEncoder):
            around.use_nested_tensor = False  # which no other kernel takes
