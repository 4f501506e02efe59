"""torch for the device fold: rows become sums where the activations are, on a CUDA device or on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import Any

import array_api_compat.torch
import torch
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.spec import to_host
from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.statistics.array_fold import ArrayFold, ArrayLibrary
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.folding import FoldState, Workspace


def torch_library(device: torch.device) -> ArrayLibrary:
    """Return the fold's view of torch on one device; its allocator reuses memory by itself."""
    return ArrayLibrary(
        f"torch:{device.type}",
        array_api_compat.torch,
        partial(on_device, device=device),
        _copied_to_host,
        _add_product,
        full_precision,
    )


def torch_fold(
    state: FoldState, _workspace: Workspace, _executor: Executor | None, precision: Precision, *, device: torch.device
) -> ArrayFold:
    """Go on from a state on a device: what `Backend.new_fold` asks for."""
    return ArrayFold(state, precision, torch_library(device))


def torch_backend(device: torch.device) -> Backend:
    """Return how rows are handled and folded by torch on one device."""
    stage = partial(_staged, device=device)
    return Backend(partial(torch_fold, device=device), partial(join_rows, device=device), to_host, stage, stack=None)


def on_device(rows: Any, device: torch.device) -> torch.Tensor:
    """Return rows on `device`, in the precision they have; tensors that are there already never leave it."""
    return rows.detach().to(device) if isinstance(rows, torch.Tensor) else torch.tensor(rows, device=device)


def join_rows(parts: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Concatenate rows on `device`: tensors as captured, or arrays as a checkpoint kept them, losslessly wider."""
    return torch.cat([on_device(part, device) for part in parts])


def use_own_device(environment: Mapping[str, str]) -> None:
    """Let `cuda` be, for this rank, the device of its number on this machine, LOCAL_RANK, where there are several."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def wait_for_devices() -> None:
    """Wait until CUDA devices have done what they were told, for a stopwatch."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
            f"device '{name}' does not exist: torch sees {torch.cuda.device_count()} CUDA devices; "
            "name another, or leave the device out"
        )
    return device


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of float32 products inside the block; the settings are then what they were.

    They belong to the process, so one thread at a time folds in single precision.
    """
    before = _float32_products()
    _set_float32_products(["ieee", "ieee"] if len(before) == 2 else ["highest"])
    try:
        yield
    finally:
        _set_float32_products(before)


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


def _add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    target.addmm_(left.T, right)


def _staged(rows: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Send rows to the device; by way of page-locked memory the copy runs while the device works."""
    tensor = torch.from_numpy(rows)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _copied_to_host(array: torch.Tensor) -> NDArray[Any]:
    return to_host(array) if array.is_floating_point() else array.cpu().numpy()
