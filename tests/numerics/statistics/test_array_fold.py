"""The device fold against the reference fold: the same moments by numpy, torch and CuPy, on the CPU and on CUDA."""

import copy
import sys

import array_api_compat.numpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import KINDS, make_rows
from two_folds import TOLERANCE, assert_same_moments, cpu_fold, folded

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.torch_library import torch_backend, torch_library
from dalr_stream.numerics.linalg.precision import Precision, error_bound
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import Tile
from dalr_stream.numerics.statistics.array_fold import ArrayFold, ArrayLibrary
from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip, strips
from dalr_stream.numerics.statistics.folding import FoldState, LaneFold, join_strips
from dalr_stream.streaming.cupy_library import cupy_backend, cupy_library


def numpy_library():
    return ArrayLibrary("numpy", array_api_compat.numpy, np.asarray, np.asarray)


def cuda_library():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    return torch_library(torch.device("cuda"))


def cupy_library_here():
    pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    return cupy_library()


LIBRARIES = {
    "numpy": numpy_library,
    "torch": lambda: torch_library(torch.device("cpu")),
    "torch-cuda": cuda_library,
    "cupy": cupy_library_here,
}
EVERYWHERE = [pytest.param(name, marks=pytest.mark.gpu if name in ("torch-cuda", "cupy") else ()) for name in LIBRARIES]


@pytest.fixture(params=EVERYWHERE)
def library(request):
    return LIBRARIES[request.param]()


def fold_of(library, features, precision=Precision.DOUBLE, state=None):
    return ArrayFold(state or FoldState.empty(Strip(0, features)), precision, library)


# --- against the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["numpy", "torch"])
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 60),
    d=st.integers(1, 12),
    height=st.integers(1, 70),
    dtype=st.sampled_from(["f4", "f8"]),
)
def test_moments_are_those_of_the_reference_for_every_kind_of_rows(name, kind, n, d, height, dtype):
    rows = make_rows(kind, n, d, seed=n).astype(dtype)
    assert_same_moments(folded(fold_of(LIBRARIES[name](), d), rows, height), folded(cpu_fold(d), rows, height))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", Precision)
def test_moments_are_those_of_the_reference_within_the_bound_of_the_precision(library, kind, precision):
    rows = make_rows(kind, 300, 9, seed=0)
    tolerance = TOLERANCE + (precision is Precision.SINGLE) * error_bound(128)
    assert_same_moments(folded(fold_of(library, 9, precision), rows, 128), folded(cpu_fold(9), rows, 128), tolerance)


def test_units_in_which_float32_would_overflow_or_vanish_cost_nothing(library):
    rows = np.random.default_rng(1).normal(size=(500, 6)) * 10.0 ** np.array([-150.0, -30.0, -3.0, 3.0, 30.0, 150.0])
    found = folded(fold_of(library, 6, Precision.SINGLE), rows, 128)
    assert_same_moments(found, folded(cpu_fold(6), rows, 128), error_bound(128) + TOLERANCE)


def test_features_that_never_vary_have_exactly_no_scatter(library):
    moments = folded(fold_of(library, 5), make_rows("constant", 100, 5, seed=0), 30)
    assert not moments.scatter[0].any()
    assert moments.mean[0] == -3.7


def test_a_matrix_of_several_blocks_and_its_strips(library):
    rows = np.random.default_rng(0).normal(size=(300, 2100)) + 5.0
    whole = folded(fold_of(library, 2100), rows, 256)
    assert_same_moments(whole, folded(cpu_fold(2100), rows, 256))
    parts = []
    for strip in strips(2100, 0):
        fold = fold_of(library, 2100, state=FoldState.empty(strip))
        fold.update(rows[:256], 256)
        fold.update(rows[256:], 44)
        parts.append(fold.state())
    assert_same_moments(join_strips(parts).moments(), whole)


def test_no_rows_change_nothing(library):
    fold = fold_of(library, 3)
    fold.update(np.empty((0, 3)), 0)
    assert fold.state().moments().count == 0


def test_a_lane_on_a_device_is_split_as_a_lane_of_numpy(library):
    rows = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)
    rule, samples = FoldRule(6, HoldoutRule(0.3, seed=1)), np.arange(900) // 3
    on_device = LaneFold(rule, new_fold=lambda state, _workspace, _executor, how: ArrayFold(state, how, library))
    here = LaneFold(rule)
    for lane in (on_device, here):
        lane.update(Tile.of(0, rows[:500], samples[:500], -1))
        lane.update(Tile.of(1, rows[500:], samples[500:], int(samples[499])))
    split, expected = on_device.freeze(), here.freeze()
    assert_same_moments(split.training, expected.training)
    assert_same_moments(split.heldout, expected.heldout)
    assert split.heldout.samples == rule.holdout.mask(np.arange(300)).sum()


def test_tiles_of_a_store_are_taken_as_they_are_read(library):
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    writable = folded(fold_of(library, 4), rows.copy(), 20)
    rows.setflags(write=False)
    assert folded(fold_of(library, 4), rows, 20).same_bits(writable)


@pytest.mark.parametrize(
    ("needed", "make"),
    [
        pytest.param("torch", lambda: torch_backend(torch.device("cpu")), id="torch"),
        pytest.param("torch-cuda", lambda: torch_backend(torch.device("cuda")), id="cuda", marks=pytest.mark.gpu),
        pytest.param("cupy", cupy_backend, id="cupy", marks=pytest.mark.gpu),
    ],
)
def test_rows_staged_ahead_have_the_bits_of_rows_sent_with_the_fold(needed, make):
    LIBRARIES[needed]()  # skips where it is not there
    backend, rows = make(), np.random.default_rng(0).normal(size=(512, 40)).astype(np.float32)
    straight, staged = (backend.new_fold(FoldState.empty(Strip(0, 40)), None, None, Precision.DOUBLE) for _ in "ab")
    for first in (0, 256):
        straight.update(rows[first : first + 256], 256)
        staged.update(backend.stage(rows[first : first + 256]), 256)
    assert staged.state().moments().same_bits(straight.state().moments())


# --- states and failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", Precision)
def test_a_fold_goes_on_from_a_state_to_the_same_bits(library, precision):
    rows = np.random.default_rng(0).normal(size=(300, 1100)).astype(np.float32)
    straight = folded(fold_of(library, 1100, precision), rows, 64)
    first = fold_of(library, 1100, precision)
    first.update(rows[:64], 64)
    first.update(rows[64:128], 64)
    saved = copy.deepcopy(first.state())
    assert folded(fold_of(library, 1100, precision, saved), rows[128:], 64).same_bits(straight)


def test_a_state_that_was_handed_out_does_not_change_with_the_fold(library):
    rows = np.random.default_rng(0).normal(size=(128, 5))
    fold = fold_of(library, 5)
    fold.update(rows[:64], 64)
    handed_out = fold.state()
    before = copy.deepcopy(handed_out)
    fold.update(rows[64:], 64)
    assert handed_out.moments().same_bits(before.moments())


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "1 NaN and 0 Inf"), (-np.inf, "0 NaN and 1 Inf")])
@pytest.mark.parametrize("precision", Precision)
def test_a_fold_that_met_a_bad_row_is_as_it_was(library, bad, message, precision):
    good = np.random.default_rng(0).normal(size=(60, 8))
    spoilt = good.copy()
    spoilt[59, 5] = bad
    fold = fold_of(library, 8, precision)
    fold.update(good, 60)
    before = copy.deepcopy(fold.state())
    with pytest.raises(NonFiniteError, match=f"{message} in feature 5"):
        fold.update(spoilt, 60)
    assert fold.state().moments().same_bits(before.moments())


def test_cupy_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InvalidInputError, match=r"needs CuPy, which is not installed: pip install 'dalr_stream\[cupy"):
        cupy_backend()


# --- torch's half precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", Precision)
def test_half_precision_rows_have_the_bits_of_the_same_rows_widened(dtype, precision):
    rows = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    library = torch_library(torch.device("cpu"))
    half, wide = (folded(fold_of(library, 7, precision), kind, 40) for kind in (rows, rows.double()))
    assert half.same_bits(wide)
    tolerance = TOLERANCE + (precision is Precision.SINGLE) * error_bound(40)
    assert_same_moments(half, folded(cpu_fold(7), rows.float().numpy(), 40), tolerance)
