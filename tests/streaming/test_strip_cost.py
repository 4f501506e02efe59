"""What ranks hold that share the sums of layers: the plan against arrays that exist, and laws of its own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows_on_disk import rows_like

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.backend import Backend
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.layer_lanes import NewLanes
from dalr_stream.streaming.plan import plan
from dalr_stream.streaming.ranks.strip_sums import StripSums

MIB = 2**20


def plan_of(*widths, rows=10_000, share=0.1, **options):
    layers = [LayerLoad(f"fc{width}", width, rows) for width in widths]
    return plan(layers, threads=2, heldout_share=share, direct=True, **options)


@pytest.mark.parametrize("segments", [0, 8])
@pytest.mark.parametrize("ranks", [2, 3])
def test_memory_covers_the_sums_that_each_rank_makes(segments, ranks):
    widths = {"fc1030": 1030, "fc2100": 2100, "fc40": 40}
    found = plan_of(*widths.values(), ranks=ranks, segments=segments, memory_limit_bytes=1 if segments else None)
    folding = Folding(HoldoutRule(0.1, seed=0), segment_batches=1 if segments else 0)
    for rank in range(ranks):
        with ThreadPoolExecutor(1) as executor:
            sums = StripSums(folding, NewLanes(Backend(), executor), rank, ranks)
            sums.deal(widths)
            for name, width in widths.items():
                for batch in range(segments or 3):
                    numbers = range(4096 * batch, 4096 * batch + (20 if segments else 4096))
                    sums.push(name, rows_like(len(numbers), width), [*numbers])
                    if segments:
                        sums.close(batch)
                states = [state for strip in sums.held(name) for state in strip]
                held = sum(part.scatter.nbytes for state in states for part in (state.training, state.heldout))
                assert held <= found.in_strips(name).sums_bytes[name]


@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=4, unique=True), st.sampled_from([2, 4, 8]))
def test_twice_the_ranks_need_no_more_each(widths, ranks):
    assert plan_of(*widths, ranks=2 * ranks).peak_bytes <= plan_of(*widths, ranks=ranks).peak_bytes


@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=5, unique=True), st.integers(1, 2**34))
def test_every_layer_is_in_one_pass_and_what_fits_whole_is_not_shared(widths, limit):
    found = plan_of(*widths, ranks=3, segments=5, memory_limit_bytes=limit)
    assert sorted(name for group in found.groups for name in group) == sorted(f"fc{width}" for width in widths)
    for layer in found.layers:
        fits = layer.direct_bytes + found.shared_bytes <= limit
        assert (found.in_strips(layer.name) is None) == fits


def test_without_segments_all_layers_are_shared_in_as_few_passes_as_fit():
    assert len(plan_of(3000, 4000, 5000, ranks=2).strips) == 1
    limited = plan_of(3000, 4000, 5000, ranks=2, memory_limit_bytes=400 * MIB)
    assert [one.layers for one in limited.strips] == [("fc3000", "fc4000"), ("fc5000",)]
    limited.require()


def test_one_process_is_told_how_many_ranks_would_do_and_ranks_how_many_more():
    alone = plan_of(25_088, memory_limit_bytes=4096 * MIB)
    with pytest.raises(MemoryLimitError, match=r"needs 9,735 MiB directly.*share its sums out to 2 ranks \(3,768 MiB"):
        alone.require()
    two = plan_of(25_088, memory_limit_bytes=4096 * MIB, ranks=2, segments=30)
    words = r"needs 22,200 MiB on each of 2 ranks.*start 16 ranks \(3,384 MiB each\).*segment_batches = 0, 3,768 MiB"
    with pytest.raises(MemoryLimitError, match=words):
        two.require()
