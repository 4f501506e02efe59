"""What a module gave: kept, handed out again, or known to be used by nothing that is left to run.

Followed    tells whoever made it when its numbers are used; asking for its shape or device is no use
Spent       has shape, type and device, and no numbers: whoever uses them after all is told so
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

_ASKING = frozenset(
  {
    "shape", "size", "dim", "ndim", "ndimension", "dtype", "device", "layout", "numel", "nelement", "__len__",
    "stride", "storage_offset", "element_size", "itemsize", "is_contiguous", "is_floating_point", "is_complex",
    "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta", "is_sparse", "is_quantized", "is_nested", "is_mkldnn",
    "is_inference", "is_leaf", "requires_grad", "get_device",
  }
)  # fmt: skip
"""What a tensor says of itself without its numbers."""


ALIGNED_BYTES = 64
"""Where torch lets memory begin: a kernel may round otherwise from elsewhere."""


class UsedError(BaseException):
    """The numbers of a `Spent` tensor were asked for. No network's own `except Exception` takes it."""


class AbsentError(UsedError):
    """A module is run whose weights are not there: the batch that a network was proved on did not call it here."""


class Followed(torch.Tensor):
    """A tensor whose uses are told; what is computed from it is a tensor like any other."""

    told: Callable[[], None]
    givers: tuple[Any, ...]
    """The calls that gave it, or passed it on, in order."""

    @classmethod
    def of(cls, tensor: torch.Tensor, told: Callable[[], None]) -> Followed:
        """Return the same numbers in the same memory."""
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001  # torch documents it so
            followed = tensor.as_subclass(torch.Tensor).as_subclass(cls)
        followed.told = told
        return followed

    @classmethod
    def __torch_function__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Tell that the arguments are used, and compute with plain tensors."""
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001  # torch documents it so
            if not asks(func):
                for tensor in tensors_in((args, kwargs)):
                    if isinstance(tensor, Followed):
                        tensor.told()
            return func(*_plain(args), **_plain(kwargs or {}))


class Spent(torch.Tensor):
    """Stands for a tensor that nothing uses any more."""

    @classmethod
    def of(cls, form: Form) -> Spent:
        """Return one of that form."""
        made: Spent = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, form.shape, strides=form.strides, dtype=form.dtype, device=form.device
        )
        return made

    @classmethod
    def __torch_function__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what needs no numbers."""
        if not asks(func):
            raise UsedError
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        """Raise for whatever comes another way."""
        raise UsedError


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor less its numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Form:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def form_of(kept: torch.Tensor | Form) -> Form:
    """Return what is kept of a tensor that nothing uses any more."""
    return kept if isinstance(kept, Form) else Form.of(kept)


def is_plain(value: Any) -> bool:
    """Tell whether a value is tensors, numbers and words in tuples, lists and mappings of Python's own."""
    if type(value) in (tuple, list):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, value.values()))
    if isinstance(value, torch.Tensor):
        return _can_be_copied(value)
    return value is None or isinstance(value, bool | int | float | str)


def obstacle_of(value: Any) -> str:
    """Return what keeps a value from being plain, in words; nothing where it is."""
    if is_plain(value):
        return ""
    if type(value) in (tuple, list, dict):
        members = value.values() if type(value) is dict else value
        return next(filter(None, map(obstacle_of, members)))
    if isinstance(value, torch.Tensor):
        return f"a tensor of {' x '.join(map(str, value.shape))} that is a part or an expansion of another one"
    return f"a {type(value).__name__}"


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a plain value with every tensor, or what stands for one, changed."""
    if type(value) in (tuple, list):
        return type(value)(mapped(member, change) for member in value)
    if type(value) is dict:
        return {key: mapped(member, change) for key, member in value.items()}
    return change(value) if isinstance(value, torch.Tensor | Form) else value


def _can_be_copied(tensor: torch.Tensor) -> bool:
    """Tell whether a copy lies in memory as the tensor does, so that kernels take the same steps on it."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    begins_evenly = tensor.storage_offset() * tensor.element_size() % ALIGNED_BYTES == 0
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001  # to look at it is no use of it
        return begins_evenly and torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def asks(func: Any) -> bool:
    """Tell whether a function of torch needs no numbers of a tensor."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name in _ASKING


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for member in value:
            yield from tensors_in(member)


def _plain(value: Any) -> Any:
    if isinstance(value, Followed):
        return value.as_subclass(torch.Tensor)
    if type(value) is dict:
        return {key: _plain(member) for key, member in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    if isinstance(value, tuple) and any(isinstance(tensor, Followed) for tensor in tensors_in(value)):
        return type(value)(*map(_plain, value))
    return value
