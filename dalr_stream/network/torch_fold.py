"""The torch fold: rows become sums where the activations are, on the CPU or on a CUDA device.

The arithmetic is the reference fold's (`numerics.folding.CpuFold`): each tile is centred in float64, the row that joins
it to what came before rides along, and the lower triangle is updated in place, a block of rows at a time. The moments
are those of the reference to 1e-12 of sqrt(S_ii S_jj) in double precision, though not its bits, so the record names the
engine. The same rows give the same bits on the same device, build and number of threads.

A tile costs one wait for the device, to learn whether its rows are finite; nothing else is read back before `state`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import torch

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.layers.spec import to_host
from dalr_stream.numerics.linalg.precision import LARGEST_EXPONENT, Precision
from dalr_stream.numerics.statistics.centring import Chosen, describe_non_finite
from dalr_stream.numerics.statistics.folding import FoldState, Workspace

BLOCK_ROWS = 1024
"""Rows of the scatter matrix updated by one product: a wide matrix costs little more than its lower triangle."""


class TorchFold:
    """A Fold on one device. Memory there: d^2 doubles and one tile in float64.

    In single precision also the tile in float32 and the products of `BLOCK_ROWS` rows, 12 KiB a feature.
    """

    def __init__(
        self,
        state: FoldState,
        _workspace: Workspace,
        _executor: Executor | None,
        precision: Precision,
        *,
        device: torch.device,
    ) -> None:
        """Go on from `state`, which is copied to the device; the allocator of torch reuses memory by itself."""
        self._count, self._samples = state.count, state.samples
        sums = (state.mean, state.scatter, state.maximum, state.minimum, state.nonzero)
        self._mean, self._scatter, self._maximum, self._minimum, self._nonzero = (
            torch.tensor(array, device=device) for array in sums
        )
        self._precision = precision
        self._device = device

    @torch.inference_mode()
    def update(self, rows: Any, samples: int, chosen: Chosen | None = None) -> None:
        """Fold rows (n, d), a tensor or an array, or the `chosen` of them; NonFiniteError, nothing folded, at NaN, Inf.

        They are chosen by number: counting those of a mask would mean waiting for the device.
        """
        n = int(rows.shape[0]) if chosen is None else chosen.size
        if n == 0:
            return
        rows = _tensor(rows, self._device)[:, : self._mean.numel()]
        if chosen is not None:
            rows = rows.index_select(0, torch.from_numpy(chosen).to(self._device))
        mean, centred = _centre(rows)
        if not mean.isfinite().all():
            raise NonFiniteError(f"activations must be finite, got {describe_non_finite(to_host(rows))}")
        centred[n] = math.sqrt(self._count * n / (self._count + n)) * (mean - self._mean)
        self._add_products(centred)
        self._mean = torch.lerp(self._mean, mean, n / (self._count + n))
        self._count += n
        self._samples += samples
        torch.maximum(self._maximum, rows.amax(0).double(), out=self._maximum)
        torch.minimum(self._minimum, rows.amin(0).double(), out=self._minimum)
        self._nonzero += torch.count_nonzero(rows, dim=0)

    def state(self) -> FoldState:
        """Return what is summed up so far, copied to this process's memory where it is not there already."""
        sums = (self._mean, self._scatter, self._maximum, self._minimum, self._nonzero)
        return FoldState(self._count, self._samples, *(tensor.cpu().numpy() for tensor in sums))

    def _add_products(self, centred: torch.Tensor) -> None:
        h, d = self._scatter.shape
        if self._precision is Precision.DOUBLE:
            for block, left, right in _blocks(h, d):
                self._scatter[block, right].addmm_(centred[:, left].T, centred[:, right])
            return
        scale = _units(centred)
        narrow = centred.div_(scale).float()
        with full_precision():
            for block, left, right in _blocks(h, d):
                products = (narrow[:, left].T @ narrow[:, right]).double()
                self._scatter[block, right] += products.mul_(scale[left, None]).mul_(scale[right])


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return rows on `device`, in the precision they have; where they are there already, they never leave it."""
    return tensor.to(device)


def join_rows(parts: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Concatenate rows on `device`: tensors as captured, or arrays as a checkpoint kept them, losslessly wider."""
    return torch.cat([_tensor(part, device) for part in parts])


def usable_device(name: str) -> torch.device:
    """Return the device called `cpu`, `cuda` or `cuda:1`; raises InvalidInputError where it cannot be used here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInputError(f"device must be 'cpu', 'cuda' or 'cuda:<number>', got '{name}'") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"device must be 'cpu' or 'cuda', which know float64, got '{name}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "name another, or leave the device out"
        )
    return device


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of float32 products inside the block; the settings are then what they were.

    They belong to the process, so one thread at a time folds in single precision.
    """
    precisions = _float32_products()
    _set_float32_products(["ieee", "ieee"] if len(precisions) == 2 else ["highest"])
    try:
        yield
    finally:
        _set_float32_products(precisions)


def _float32_products() -> list[str]:
    """Return how CUDA and the CPU take float32 products, in torch's words; before torch 2.9 one word for both."""
    cuda: Any = torch.backends.cuda.matmul
    if not hasattr(cuda, "fp32_precision"):
        return [torch.get_float32_matmul_precision()]
    cpu: Any = torch.backends.mkldnn
    return [cuda.fp32_precision, cpu.matmul.fp32_precision]


def _set_float32_products(precisions: Sequence[str]) -> None:
    if len(precisions) == 1:
        torch.set_float32_matmul_precision(precisions[0])
        return
    cpu: Any = torch.backends.mkldnn
    torch.backends.cuda.matmul.fp32_precision, cpu.matmul.fp32_precision = precisions


def _tensor(rows: Any, device: torch.device) -> torch.Tensor:
    return rows.to(device) if isinstance(rows, torch.Tensor) else torch.tensor(rows, device=device)


def _centre(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean (d,) and the rows less their mean, in float64, with one more row to be filled.

    As in `moments.centre` the first row is taken off before the mean is taken, so constant features stay exactly zero.
    """
    n, d = rows.shape
    centred = torch.empty(n + 1, d, dtype=torch.float64, device=rows.device)
    body = centred[:n]
    body.copy_(rows)
    origin = body[0].clone()
    body -= origin
    offset = body.mean(0)
    body -= offset
    return origin + offset, centred


def _units(centred: torch.Tensor) -> torch.Tensor:
    """(d,): powers of two that bring each feature's largest value to 1/2..1; see `numerics.precision`."""
    exponents = torch.frexp(torch.maximum(centred.amax(0), -centred.amin(0))).exponent
    return torch.exp2(exponents.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).double())


def _blocks(h: int, d: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield rows of the scatter's last h rows, the same rows of the whole, and their columns in the lower triangle."""
    first = d - h
    for start in range(first, d, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, d)
        yield slice(start - first, stop - first), slice(start, stop), slice(0, stop)
