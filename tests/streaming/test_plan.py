"""The plan's arithmetic, held against arrays that exist and against laws of its own."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.numerics.statistics.folding import LaneFold
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.layer_lanes import NewLanes
from dalr_stream.streaming.plan import plan

MIB = 2**20
loads = st.lists(st.builds(LayerLoad, st.uuids().map(str), st.integers(1, 9000), st.integers(0, 10**9)), max_size=5)


def plan_of(*widths, rows=10_000, domains=2, threads=2, share=0.1, **options):
    layers = [LayerLoad(f"fc{width}", width, rows) for width in widths]
    return plan(layers, domains=domains, threads=threads, heldout_share=share, **options)


@given(st.integers(1, 30_000), st.integers(0, 10**12), st.sampled_from([0.0, 0.1]), st.booleans())
def test_memory_does_not_depend_on_the_number_of_rows(width, rows, share, direct):
    few, many = (plan_of(width, rows=n, share=share, direct=direct) for n in (0, rows))
    assert few.peak_bytes == many.peak_bytes


def test_disk_is_that_of_the_arrays():
    rows = np.zeros((1000, 30), np.float32)
    record = Moments.of(rows)
    bare = plan_of(30, rows=1000, domains=3, share=0.0)
    assert bare.disk_bytes == rows.nbytes + 3 * record.scatter.nbytes
    assert plan_of(30, rows=1000, domains=3, direct=True, share=0.0).disk_bytes == 3 * record.scatter.nbytes
    assert plan_of(30, rows=1000, domains=3).layers[0].moments_bytes == 6 * record.scatter.nbytes


@pytest.mark.parametrize("width", [100, 1500, 2100])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_memory_covers_the_accumulators_that_a_fold_makes(width, share):
    rule = FoldRule(width, HoldoutRule(share))
    state = LaneFold(rule).state()
    accumulators = rule.lanes * sum(part.scatter.nbytes for part in (state.training, state.heldout) if part)
    tile = np.empty((rule.tile_rows, width), np.float32).nbytes
    (cost,) = plan_of(width, share=share).layers
    assert cost.store_bytes >= accumulators + 3 * tile  # a tile as read, and in float64
    assert cost.direct_bytes == accumulators + tile


@pytest.mark.parametrize("rows", [1, 4096, 4097])
def test_lanes_that_get_no_tile_are_not_counted_and_get_no_memory(rows):
    rule = FoldRule(1024, HoldoutRule(0.0))
    with ThreadPoolExecutor(1) as executor:
        lanes = NewLanes(Backend(), executor).of(rule)
        lanes.push(np.zeros((rows, 1024), np.float32), np.arange(rows))
        lanes.flush()
    scatters = [part.scatter for state in lanes.states() for part in (state.training, state.heldout) if part]
    made = sum(scatter.nbytes for scatter in scatters if scatter.flags.writeable)
    load = LayerLoad("fc", 1024, rows, most_rows=rows)
    tile = min(rows, rule.tile_rows) * 1024 * 4
    (cost,) = plan([load], threads=1, heldout_share=0.0, direct=True).layers
    assert cost.direct_bytes == made + tile


@given(st.integers(1, 9000), st.integers(0, 10**7), st.integers(0, 10**7), st.booleans())
def test_the_more_rows_are_known_to_come_the_more_is_held_up_to_what_any_number_takes(width, rows, more, direct):
    def peak(most):
        return plan([LayerLoad("fc", width, 0, most_rows=most)], threads=2, heldout_share=0.1, direct=direct).peak_bytes

    assert peak(rows) <= peak(rows + more) <= peak(None) == peak(10**9)


@pytest.mark.parametrize("width", [100, 2100])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_shards_cost_records_and_passes_and_directly_memory(width, share):
    bare, dealt = (plan_of(width, share=share, shards=shards, domains=1) for shards in (1, 8))
    record, heldout = 8 * width * width, int(share > 0)
    assert dealt.disk_bytes == bare.disk_bytes + 8 * record
    assert dealt.layers[0].passes == 8 + heldout
    lanes = FoldRule(width, HoldoutRule(share), shards=8).lanes
    held = lanes * (8 + heldout) * record  # every shard's lanes in the one pass through the network
    assert plan_of(width, share=share, shards=8, direct=True).layers[0].direct_bytes >= held
    assert dealt.layers[0].store_bytes >= 6 * record  # three levels of the tree, a sum and its rank-one term
    assert dealt.layers[0].store_bytes <= bare.layers[0].store_bytes + 7 * record
    assert dealt.layers[0].multiply_adds == bare.layers[0].multiply_adds


def test_shards_are_added_in_strips_where_they_do_not_fit_and_refused_where_not_even_those_do():
    layers = [LayerLoad("fc6", 4096, 1000)]
    whole, cut, refused = (
        plan(layers, threads=2, heldout_share=0.1, shards=8, memory_limit_bytes=limit * MIB)
        for limit in (1000, 400, 100)
    )
    assert len(whole.layers[0].sum_strips) == 1
    assert len(cut.layers[0].sum_strips) > 1
    assert max(strip.cells for strip in cut.layers[0].sum_strips) * 8 * 6 <= 400 * MIB
    for fits in (whole, cut):
        fits.require()
    with pytest.raises(MemoryLimitError, match=r"layer 'fc6': .* keep no shards \([0-9,]+ MiB uncut\)"):
        refused.require()


@given(loads, st.integers(1, 64))
def test_a_store_run_holds_one_layer_at_a_time_and_a_direct_run_all(layers, threads):
    whole, direct = (plan(layers, threads=threads, heldout_share=0.1, direct=how) for how in (False, True))
    alone = [plan([load], threads=threads, heldout_share=0.1) for load in layers]
    assert whole.peak_bytes == max([one.peak_bytes for one in alone], default=0)
    assert direct.peak_bytes == direct.shared_bytes + sum(layer.direct_bytes for layer in direct.layers)
    assert whole.disk_bytes == sum(one.disk_bytes for one in alone)


@given(loads, st.integers(MIB, 4 * 2**30))
def test_passes_hold_every_layer_once_and_stay_within_the_limit_where_each_layer_does(layers, limit):
    found = plan(layers, threads=2, heldout_share=0.1, direct=True, memory_limit_bytes=limit)
    assert [name for group in found.groups for name in group] == [load.name for load in layers]
    fits = all(found.shared_bytes + layer.direct_bytes <= limit for layer in found.layers)
    assert (found.peak_bytes <= limit) == (fits or not layers)
    if fits:
        found.require()


@given(st.integers(2049, 30_000), st.integers(MIB, 8 * 2**30), st.sampled_from([0.0, 0.1]))
def test_a_huge_matrix_is_cut_to_fit_or_to_the_narrowest(width, limit, share):
    (cost,) = plan_of(width, share=share, memory_limit_bytes=limit).layers
    uncut = plan_of(width, share=share).layers[0].store_bytes
    assert (cost.passes == 1) == (uncut <= limit or width <= 1024)
    assert cost.store_bytes <= max(limit, 0) or all(strip.stop - strip.first <= 1024 for strip in cost.strips)


def test_what_fits_is_let_through():
    plan_of(100, 4096).require()
    plan_of(100, 4096, memory_limit_bytes=plan_of(100, 4096).peak_bytes).require()


def test_what_does_not_fit_is_refused_with_the_layer_the_figures_and_the_alternatives():
    layers = [LayerLoad("conv", 100, 10), LayerLoad("fc6", 25088, 10, outputs=4096)]
    refused = plan(layers, threads=2, heldout_share=0.1, memory_limit_bytes=100 * MIB)
    with pytest.raises(MemoryLimitError) as caught:
        refused.require()
    message = str(caught.value)
    assert message.startswith("layer 'fc6': folding 25,088 features needs ")
    assert "the limit is 100 MiB: the narrowest strips of 1024 rows need" in message
    assert "keep no held-out share" in message
    assert "watch its 4,096 outputs alone" in message


def test_a_direct_run_that_does_not_fit_is_told_of_the_store():
    layers = [LayerLoad("fc6", 25088, 10)]
    refused = plan(layers, threads=2, heldout_share=0.1, direct=True, memory_limit_bytes=2000 * MIB)
    with pytest.raises(MemoryLimitError, match=r"capture to a store first \([\d,]+ MiB in \d+ passes"):
        refused.require()
