"""The first addition that what a layer gives reaches: where a residual stream takes it in, seen as the network runs.

What a layer gives is followed through operations that leave it as it is (dropout in eval mode, a copy, a cast) and
through batch norms. Where it is added to another tensor of its shape, that tensor is the stream before the addition,
told in the layer's own units: after a batch norm y = a z + c, z + r / a is what gives y + r. A channel whose a is next
to nothing could not mend the stream by any z: there 0 stands for r.

Every call of torch's functions is looked at, so only networks that run them from Python can be followed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Protocol

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dalr_stream.network.capture.resuming.given import asks, tensors_in

_ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_PASSING = frozenset(
    {
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
        "contiguous", "clone", "detach", "to", "type_as", "float", "half", "double", "bfloat16",
        "view", "reshape", "view_as", "reshape_as",
    }
)  # fmt: skip
"""Operations that may leave a tensor's numbers as they are."""
_BATCH_NORM = signature(functional.batch_norm)
SMALLEST_SCALE = 1e-2
"""Of a batch norm, relative to its largest: what is divided by less would outweigh all else that is solved for."""


class Added(Protocol):
    """Is told of the addition that the output of one call reaches, all of it in the layer's units."""

    @property
    def before(self) -> Callable[[torch.Tensor], None]:
        """Takes what the output is about to be added to: it may be overwritten then."""

    def after(self, total: torch.Tensor) -> None:
        """Take the sum."""

    def otherwise(self, operation: str) -> None:
        """Take note of another use of the output."""


@dataclass(frozen=True, slots=True)
class Before:
    """Takes the stream before the addition, and nothing else."""

    before: Callable[[torch.Tensor], None]

    def after(self, total: torch.Tensor) -> None:
        """Leave the sum."""

    def otherwise(self, operation: str) -> None:
        """Take no note of another use."""


@dataclass(frozen=True, slots=True)
class _Followed:
    """What became of one output."""

    tensor: torch.Tensor
    added: Added
    scale: torch.Tensor | None = None
    """a, (channels,), of the batch norms on the way."""

    def in_its_units(self, other: torch.Tensor) -> torch.Tensor:
        """Return r / a."""
        if self.scale is None:
            return other
        least = SMALLEST_SCALE * self.scale.abs().max()
        inverse = torch.where(self.scale.abs() > least, 1.0 / self.scale, torch.zeros_like(self.scale))
        return other * inverse.reshape(-1, *(1 for _ in other.shape[2:]))


class Additions(TorchFunctionMode):
    """Follows outputs while it is entered; `follow` is called in the hooks of layers."""

    def __init__(self) -> None:
        super().__init__()
        self._followed: dict[int, list[_Followed]] = {}

    def follow(self, output: torch.Tensor, added: Added) -> None:
        """Follow what a layer gave in one call."""
        self._keep(_Followed(output, added))

    def __exit__(self, *error: object) -> None:
        """Forget what was followed: callbacks of hooks would keep the tensors of a whole pass alive."""
        self._followed.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch annotates it in part

    def watching(self, *, needed: bool) -> AbstractContextManager[Any]:
        """Return what to run the network in: nothing where nothing will be followed."""
        return self if needed else nullcontext()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and see what it does with what is followed."""
        kwargs = kwargs or {}
        reading = [] if asks(func) else self._among((args, kwargs))
        if not reading:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        operands = _operands(args, kwargs) if name in _ADDITIONS else None
        if operands is not None:
            return self._sum(func, args, kwargs, [(one, _other(one, operands)) for one in reading])
        result = func(*args, **kwargs)
        self._followed.pop(id(result), None)  # one of them, which was overwritten or is handed on
        for one in reading:
            onward = _through_norm(one, result, args, kwargs) if func is functional.batch_norm else None
            onward = onward or (_as_it_is(one, result) if name in _PASSING else None)
            if onward is None:
                one.added.otherwise(name)
            else:
                self._keep(onward)
        return result

    def _sum(self, func: Any, args: Any, kwargs: Any, reading: list[tuple[_Followed, torch.Tensor]]) -> Any:
        for one, other in reading:
            one.added.before(one.in_its_units(other))
        result = func(*args, **kwargs)
        self._followed.pop(id(result), None)  # one of them, in whose place the sum is now
        for one, _ in reading:
            one.added.after(one.in_its_units(result))
        return result

    def _keep(self, one: _Followed) -> None:
        self._followed.setdefault(id(one.tensor), []).append(one)  # no other tensor has its id while it is here

    def _among(self, value: Any) -> list[_Followed]:
        if not self._followed:
            return []
        return [one for known in dict.fromkeys(map(id, tensors_in(value))) for one in self._followed.get(known, ())]


def _operands(args: Any, kwargs: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return both tensors of an addition of two of one shape; None for any other."""
    operands = (*args, *(kwargs[name] for name in ("other",) if name in kwargs))
    if len(operands) != 2 or kwargs.get("alpha", 1) != 1 or operands[0] is operands[1]:
        return None
    one, other = operands
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return (one, other) if tensors and one.shape == other.shape else None


def _other(one: _Followed, operands: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return operands[0] if operands[1] is one.tensor else operands[1]


def _as_it_is(one: _Followed, result: Any) -> _Followed | None:
    """Return what is followed after an operation that may leave it as it is; None where it does not."""
    same_shape = isinstance(result, torch.Tensor) and result.shape == one.tensor.shape
    if not same_shape or not (result is one.tensor or torch.equal(result.to(one.tensor.dtype), one.tensor)):
        return None
    return replace(one, tensor=result)


def _through_norm(one: _Followed, result: torch.Tensor, args: Any, kwargs: Any) -> _Followed | None:
    """Return what is followed after a batch norm y = a z + c; None where the batch decides a."""
    given = _BATCH_NORM.bind(*args, **kwargs)
    given.apply_defaults()
    values = given.arguments
    if values["training"] or values["running_var"] is None or values["input"] is not one.tensor:
        return None
    scale = (values["running_var"] + values["eps"]).rsqrt()
    scale = scale if values["weight"] is None else scale * values["weight"]
    return replace(one, tensor=result, scale=scale if one.scale is None else one.scale * scale)
