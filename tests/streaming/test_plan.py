"""The plan's arithmetic, held against arrays that exist and against laws of its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.folding import FoldRule, HoldoutRule, LaneFold
from dalr_stream.numerics.moments import Moments
from dalr_stream.streaming.plan import LayerLoad, plan

loads = st.lists(st.builds(LayerLoad, st.just("fc"), st.integers(1, 9000), st.integers(0, 10**9)), max_size=5)


def plan_of(*widths, rows=10_000, domains=2, workers=2, heldout=True):
    layers = [LayerLoad(f"fc{width}", width, rows) for width in widths]
    return plan(layers, domains=domains, workers=workers, heldout=heldout)


@given(st.integers(1, 30_000), st.integers(0, 10**12), st.booleans())
def test_memory_does_not_depend_on_the_number_of_rows(width, rows, heldout):
    few, many = (plan_of(width, rows=n, heldout=heldout) for n in (0, rows))
    assert few.accumulate_peak_bytes == many.accumulate_peak_bytes
    assert few.direct_peak_bytes == many.direct_peak_bytes


def test_disk_is_that_of_the_arrays():
    rows = np.zeros((1000, 30), np.float32)
    record = Moments.of(rows)
    (cost,) = plan_of(30, rows=1000, domains=3, heldout=False).layers
    assert cost.disk_bytes == rows.nbytes
    assert cost.moments_bytes == 3 * record.scatter.nbytes
    assert plan_of(30, rows=1000, domains=3).layers[0].moments_bytes == 6 * record.scatter.nbytes


@pytest.mark.parametrize("width", [100, 1500, 2100])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_memory_covers_the_accumulators_that_a_fold_makes(width, share):
    rule = FoldRule(width, holdout=HoldoutRule(share))
    lane = LaneFold(rule)
    parts = [fold for fold in (lane._training, lane._heldout) if fold is not None]
    accumulators = rule.lanes * sum(fold._scatter.nbytes for fold in parts)
    tile = np.empty((rule.tile_rows, width), np.float32).nbytes
    (cost,) = plan_of(width, heldout=share > 0).layers
    assert cost.accumulate_bytes >= accumulators + 3 * tile  # a tile as read, and in float64
    assert cost.accumulate_bytes <= 2 * accumulators + 2 * 3 * tile
    assert cost.direct_bytes >= accumulators + tile


@given(loads, st.integers(1, 64))
def test_a_store_run_holds_one_layer_at_a_time_and_a_direct_run_all(layers, workers):
    whole = plan(layers, domains=1, workers=workers, heldout=True)
    alone = [plan([load], domains=1, workers=workers, heldout=True) for load in layers]
    assert whole.accumulate_peak_bytes == max([one.accumulate_peak_bytes for one in alone], default=0)
    assert whole.direct_peak_bytes == sum(one.direct_peak_bytes for one in alone)
    assert whole.disk_bytes == sum(one.disk_bytes for one in alone)


def test_what_fits_is_let_through():
    costs = plan_of(100, 4096)
    costs.require(None)
    costs.require(costs.accumulate_peak_bytes)


def test_what_does_not_fit_is_refused_with_the_widest_layer_and_the_figures():
    """Two accumulators of 4096 x 4096 doubles are 256 MiB; two tiles in both precisions come on top."""
    costs = plan_of(100, 4096, workers=1)
    with pytest.raises(MemoryLimitError) as caught:
        costs.require(200 * 2**20)
    message = str(caught.value)
    assert message.startswith("layer 'fc4096': folding 4096 features needs 352 MiB, the limit is 200 MiB")
    assert "keep no held-out share" in message
    plan_of(100, 4096, workers=1, heldout=False).require(230 * 2**20)
