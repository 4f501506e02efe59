"""The torch fold against the reference fold: the same moments, wherever the activations are."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import KINDS, make_rows
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.layers.spec import select_layers, to_host
from dalr_stream.network.torch_fold import (
    TorchFold,
    _float32_products,
    full_precision,
    join_rows,
    on_device,
    usable_device,
)
from dalr_stream.numerics.linalg.precision import Precision, error_bound
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import Tile
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip, strips
from dalr_stream.numerics.statistics.folding import CpuFold, FoldState, LaneFold, Workspace, join_strips

CPU = torch.device("cpu")
TOLERANCE = 1e-12  # of sqrt(S_ii S_jj), as between two folds of numpy: only the order of additions differs


def torch_fold(features, device=CPU, precision=Precision.DOUBLE, state=None):
    state = state or FoldState.empty(Strip(0, features))
    return TorchFold(state, Workspace(), None, precision, device=device)


def cpu_fold(features, precision=Precision.DOUBLE):
    return CpuFold(FoldState.empty(Strip(0, features)), Workspace(), None, precision)


def folded(fold, rows, height):
    for start in range(0, len(rows), height):
        fold.update(rows[start : start + height], min(height, len(rows) - start))
    return fold.state().moments()


def assert_same_moments(found, expected, tolerance=TOLERANCE):
    root = np.sqrt(np.diagonal(expected.scatter))
    assert (found.count, found.samples) == (expected.count, expected.samples)
    assert (np.abs(found.scatter - expected.scatter) <= tolerance * np.outer(root, root)).all()
    spread = root / np.sqrt(max(found.count, 1))
    assert (np.abs(found.mean - expected.mean) <= TOLERANCE * spread + 1e-15 * np.abs(expected.mean)).all()
    assert np.array_equal(found.maximum, expected.maximum)
    assert np.array_equal(found.max_abs, expected.max_abs)
    assert np.array_equal(found.nonzero, expected.nonzero)


# --- against the reference ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(KINDS), st.integers(1, 60), st.integers(1, 12), st.integers(1, 70), st.sampled_from(["f4", "f8"])
)
def test_moments_are_those_of_the_reference_for_every_kind_of_rows(kind, n, d, height, dtype):
    rows = make_rows(kind, n, d, seed=n).astype(dtype)
    assert_same_moments(folded(torch_fold(d), torch.tensor(rows), height), folded(cpu_fold(d), rows, height))


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_stays_within_its_bound(kind):
    rows = make_rows(kind, 300, 9, seed=0)
    found = folded(torch_fold(9, precision=Precision.SINGLE), torch.tensor(rows), 128)
    assert_same_moments(found, folded(cpu_fold(9), rows, 128), error_bound(128) + TOLERANCE)


def test_units_in_which_float32_would_overflow_or_vanish_cost_nothing():
    rows = np.random.default_rng(1).normal(size=(500, 6)) * 10.0 ** np.array([-150.0, -30.0, -3.0, 3.0, 30.0, 150.0])
    found = folded(torch_fold(6, precision=Precision.SINGLE), torch.tensor(rows), 128)
    assert_same_moments(found, folded(cpu_fold(6), rows, 128), error_bound(128) + TOLERANCE)


def test_features_that_never_vary_have_exactly_no_scatter():
    rows = torch.tensor(make_rows("constant", 100, 5, seed=0))
    moments = folded(torch_fold(5), rows, 30)
    assert not moments.scatter[0].any()
    assert moments.mean[0] == -3.7


def test_a_matrix_of_several_blocks_and_its_strips():
    rows = np.random.default_rng(0).normal(size=(300, 2100)) + 5.0
    whole = folded(torch_fold(2100), torch.tensor(rows), 256)
    assert_same_moments(whole, folded(cpu_fold(2100), rows, 256))
    parts = []
    for strip in strips(2100, 0):
        fold = torch_fold(2100, state=FoldState.empty(strip))
        fold.update(torch.tensor(rows[:256]), 256)
        fold.update(torch.tensor(rows[256:]), 44)
        parts.append(fold.state())
    assert_same_moments(join_strips(parts).moments(), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", Precision)
def test_half_precision_rows_have_the_bits_of_the_same_rows_widened(dtype, precision):
    rows = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    half, wide = (folded(torch_fold(7, precision=precision), kind, 40) for kind in (rows, rows.double()))
    assert half.same_bits(wide)
    assert_same_moments(
        half, folded(cpu_fold(7), to_host(rows), 40), TOLERANCE + (precision is Precision.SINGLE) * error_bound(40)
    )


def test_no_rows_change_nothing():
    fold = torch_fold(3)
    fold.update(torch.empty(0, 3), 0)
    assert fold.state().moments().count == 0


def test_a_lane_of_tensors_is_split_as_a_lane_of_arrays():
    rows = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)
    rule, samples = FoldRule(6, HoldoutRule(0.3, seed=1)), np.arange(900) // 3
    lanes = LaneFold(rule, new_fold=partial(TorchFold, device=CPU)), LaneFold(rule)
    for lane, block in zip(lanes, (torch.tensor(rows), rows), strict=True):
        lane.update(Tile.of(0, block[:500], samples[:500], -1))
        lane.update(Tile.of(1, block[500:], samples[500:], int(samples[499])))
    found, expected = (lane.freeze() for lane in lanes)
    assert_same_moments(found.training, expected.training)
    assert_same_moments(found.heldout, expected.heldout)
    assert found.heldout.samples == rule.holdout.mask(np.arange(300)).sum()


def test_tiles_of_a_store_are_taken_as_they_are_read():
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    rows.setflags(write=False)
    assert folded(torch_fold(4), rows, 20).same_bits(folded(torch_fold(4), torch.tensor(rows), 20))


# --- states, failures, settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", Precision)
def test_a_fold_goes_on_from_a_state_to_the_same_bits(precision):
    rows = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    straight = folded(torch_fold(40, precision=precision), rows, 64)
    first = torch_fold(40, precision=precision)
    first.update(rows[:64], 64)
    first.update(rows[64:128], 64)
    kept = copy.deepcopy(first.state())
    assert folded(torch_fold(40, precision=precision, state=kept), rows[128:], 64).same_bits(straight)


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "1 NaN and 0 Inf"), (-np.inf, "0 NaN and 1 Inf")])
@pytest.mark.parametrize("precision", Precision)
def test_a_fold_that_met_a_bad_row_is_as_it_was(bad, message, precision):
    good = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    spoilt = good.clone()
    spoilt[59, 5] = bad
    fold = torch_fold(8, precision=precision)
    fold.update(good, 60)
    before = copy.deepcopy(fold.state())
    with pytest.raises(NonFiniteError, match=f"{message} in feature 5"):
        fold.update(spoilt, 60)
    assert fold.state().moments().same_bits(before.moments())


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
        ("cuda:77", r"device 'cuda:77' is not there: torch sees \d+ CUDA devices; name another, or leave"),
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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", Precision)
def test_cuda_moments_are_those_of_the_reference(cuda, kind, precision):
    rows = make_rows(kind, 300, 9, seed=0)
    found = folded(torch_fold(9, cuda, precision), torch.tensor(rows, device=cuda), 128)
    tolerance = TOLERANCE + (precision is Precision.SINGLE) * error_bound(128)
    assert_same_moments(found, folded(cpu_fold(9), rows, 128), tolerance)


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
        if tensor.is_cuda and not getattr(found, "is_cuda", False):
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
