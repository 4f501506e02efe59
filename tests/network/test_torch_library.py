"""torch as the fold's library: precision settings, devices, captured tensors, and CUDA."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from two_folds import assert_same_moments, cpu_fold, folded

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.layers.spec import select_layers, to_host
from dalr_stream.network.torch_library import (
    _float32_products,
    full_precision,
    join_rows,
    on_device,
    torch_library,
    usable_device,
)
from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.statistics.array_fold import ArrayFold
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import FoldState

CPU = torch.device("cpu")


def torch_fold(features, device=CPU, precision=Precision.DOUBLE):
    return ArrayFold(FoldState.empty(Strip(0, features)), precision, torch_library(device))


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_float32_products_are_float32_inside_and_the_setting_is_left_alone(setting):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        outside = _float32_products()
        with full_precision():
            assert set(_float32_products()) <= {"ieee", "highest"}
        assert _float32_products() == outside
        assert torch.get_float32_matmul_precision() == setting
        assert torch.backends.cuda.matmul.allow_tf32 == (setting != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu0", "must be 'cpu', 'cuda' or 'cuda:<number>', got 'gpu0'"),
        ("meta", "must be 'cpu' or 'cuda', which know float64, got 'meta'"),
        ("cuda:77", r"device 'cuda:77' does not exist: torch sees \d+ CUDA devices; name another, or leave"),
    ],
)
def test_a_device_that_cannot_fold_is_refused(name, message):
    with pytest.raises(InvalidInputError, match=message):
        usable_device(name)


def test_rows_kept_by_a_checkpoint_join_those_captured_since():
    since = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    kept = to_host(since)
    assert kept.dtype == np.float32
    joined = join_rows([kept, since], CPU)
    assert torch.equal(joined[:3], joined[3:])


# --- capture ------------------------------------------------------------------------------------------------------


class Collector:
    def __init__(self):
        self.blocks = []

    def skip(self, *_):
        return False

    def write(self, batch):
        self.blocks.append(batch.rows["0"])

    def finish(self):
        pass


class Overwriting(nn.Sequential):
    """Overwrites its input after the layer has read it."""

    def forward(self, x):
        y = super().forward(x)
        x.fill_(7.0)
        return y


def captured(dtype, device, rows):
    net = Overwriting(nn.Linear(4, 2)).eval().to(device=device, dtype=dtype)
    sink = Collector()
    capture_rows(net, [rows.clone()], select_layers(net, ["0"]), sink, to_rows=partial(on_device, device=device))
    return sink.blocks[0]


def test_captured_tensors_keep_their_precision_and_are_copies():
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = captured(torch.bfloat16, CPU, rows)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rows)


def test_bad_tensors_are_named_as_bad_arrays_are():
    rows = torch.ones(3, 4)
    rows[1, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layer '0', batch 0: .* 1 NaN and 0 Inf in feature 2"):
        captured(torch.float32, CPU, rows)


# --- CUDA ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_cuda_float32_products_take_no_tf32_though_the_process_does(cuda):
    """TF32 keeps 11 bits: one product of it is off by up to 5e-4, and the diagonal by 1e-5 or more."""
    rows = torch.randn(256, 1100, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = folded(torch_fold(1100, cuda, Precision.SINGLE), rows.to(cuda), 256)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same_moments(found, folded(cpu_fold(1100), rows.numpy(), 256), tolerance=5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", Precision)
def test_cuda_gives_the_same_bits_for_the_same_rows(cuda, precision):
    rows = torch.randn(600, 1100, generator=torch.Generator().manual_seed(0)).to(cuda, torch.bfloat16)
    one, two = (folded(torch_fold(1100, cuda, precision), rows, 256) for _ in range(2))
    assert one.same_bits(two)


def stays(way):
    """Return a method of Tensor that refuses to bring what is on a CUDA device to this process's memory."""
    method = getattr(torch.Tensor, way)

    def guarded(tensor, *arguments, **keywords):
        found = method(tensor, *arguments, **keywords)
        if tensor.is_cuda and tensor.is_floating_point() and not getattr(found, "is_cuda", False):
            raise AssertionError("activations left the device")
        return found

    return guarded


@pytest.mark.gpu
def test_activations_never_leave_the_device(cuda, monkeypatch):
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    net = nn.Sequential(nn.Linear(4, 2)).eval().to(device=cuda, dtype=torch.bfloat16)
    layers, fold, sink = select_layers(net, ["0"]), torch_fold(4, cuda), Collector()
    sink.write = lambda batch: fold.update(batch.rows["0"], batch.samples)
    with monkeypatch.context() as patch:
        for way in ("cpu", "to", "numpy", "tolist"):
            patch.setattr(torch.Tensor, way, stays(way))
        capture_rows(net, rows.split(100), layers, sink, to_rows=partial(on_device, device=cuda))
    assert_same_moments(fold.state().moments(), folded(cpu_fold(4), to_host(rows), 100))
