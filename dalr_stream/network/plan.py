"""What surgery does to a network, as plain data: the shapes change here, the numbers elsewhere.

A `SurgeryPlan` turns a freshly built network into the shape of a compressed one, so that its weights can be loaded
strictly; `surgery.compress` uses the same steps and then fills in the numbers. Plans are written as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.groups import require_splittable
from dalr_stream.network.kinds import factor_pair, matrix_of
from dalr_stream.network.layers import linear, module_of


@dataclass(frozen=True, slots=True)
class SplitLayer:
    """A layer becomes a pair: inputs -> rank without bias, rank -> outputs; a convolution's second one is 1 x 1.

    In a convolution of several groups the rank is that of each.
    """

    layer: str
    rank: int
    bias: bool

    def __post_init__(self) -> None:
        _require_size(self.layer, "rank", self.rank)

    def apply(self, model: nn.Module) -> None:
        """Replace the layer by an untrained pair of the same dtype and device."""
        module = module_of(model, self.layer)
        require_splittable(self.layer, module)
        most = min(matrix_of(module).shape)
        if self.rank > most:
            raise UnsupportedLayerError(f"layer '{self.layer}': rank must lie in 1..{most}, got {self.rank}")
        _replace(model, self.layer, factor_pair(module, self.rank, bias=self.bias))


@dataclass(frozen=True, slots=True)
class KeepNodes:
    """A linear layer keeps some of its nodes; every consumer loses the matching inputs."""

    layer: str
    kept: int
    consumers: tuple[str, ...]
    consumer_bias: tuple[bool, ...]

    def __post_init__(self) -> None:
        _require_size(self.layer, "kept", self.kept)

    def apply(self, model: nn.Module) -> None:
        """Replace the layer and its consumers by smaller untrained ones."""
        producer = last_linear(model, self.layer)
        _replace(model, producer, _resized(linear(model, producer), outputs=self.kept))
        for consumer, bias in zip(self.consumers, self.consumer_bias, strict=True):
            name = first_linear(model, consumer)
            _replace(model, name, _resized(linear(model, name), inputs=self.kept, bias=bias))


Step = SplitLayer | KeepNodes
_STEPS: dict[str, type[Step]] = {"split": SplitLayer, "keep": KeepNodes}


@dataclass(frozen=True, slots=True)
class SurgeryPlan:
    """The steps, in the order they are applied."""

    steps: tuple[Step, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Give `model` the compressed network's shape, in place."""
        for step in self.steps:
            step.apply(model)

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
            kind: Callable[..., Step] | None = _STEPS.get(str(fields.pop("step", None)))
            if kind is None:
                raise InvalidInputError(f"plan: a step must be one of {', '.join(_STEPS)}, got {entry.get('step')!r}")
            try:
                steps.append(kind(**fields))
            except TypeError as error:
                raise InvalidInputError(f"plan: step {entry} cannot be read: {error}") from None
        return cls(tuple(steps))


def _require_size(layer: str, name: str, value: object) -> None:
    """Plans are also read from files: a size must be one before a layer of it is made."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"layer '{layer}': {name} must be a positive integer, got {value!r}")


def first_linear(model: nn.Module, name: str) -> str:
    """Return the name of the linear layer that reads the inputs of `name`, split or not."""
    return f"{name}.0" if isinstance(module_of(model, name), nn.Sequential) else name


def last_linear(model: nn.Module, name: str) -> str:
    """Return the name of the linear layer that gives the outputs of `name`, split or not."""
    return f"{name}.1" if isinstance(module_of(model, name), nn.Sequential) else name


def _resized(
    old: nn.Linear, *, inputs: int | None = None, outputs: int | None = None, bias: bool | None = None
) -> nn.Linear:
    bias = old.bias is not None if bias is None else bias
    return _blank(inputs or old.in_features, outputs or old.out_features, bias=bias, like=old)


def _blank(inputs: int, outputs: int, *, bias: bool, like: nn.Linear) -> nn.Linear:
    """Return a layer whose numbers are still to be filled in: drawing some would move the caller's generator."""
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=like.weight.dtype, device="meta")
    return layer.to_empty(device=like.weight.device)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    module.train(model.training)
    setattr(model.get_submodule(parent), child, module)
