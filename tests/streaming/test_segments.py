"""Segments: any number of ranks, killed or not, give the bits of a fold of each segment joined in one tree."""

from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise

import numpy as np
import pytest
from folded import KINDS, assert_moments_of, fold, hard_rows
from hypothesis import given
from hypothesis import strategies as st
from linked import StoppedError, folded_on, on_ranks, send
from rows_on_disk import rows_like

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, NonFiniteError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.segments import SegmentSum, SegmentTree
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.lock import locked
from dalr_stream.streaming.cost import sums_alive
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.lanes import Pace
from dalr_stream.streaming.ranks.segment_sink import SegmentSink

HOLDOUT = HoldoutRule(0.3, seed=2)


def twin(rows, sizes, segment, holdout=HOLDOUT):
    """Fold the rows of each segment by itself, and add the records in the pairwise tree."""
    rule, borders = FoldRule(rows.shape[1], holdout, segment_batches=segment), [0, *accumulate(sizes)]
    cuts = [*borders[::segment], *([borders[-1]] if len(sizes) % segment else [])]
    numbers = np.arange(len(rows))
    return merge_all(
        fold(rows[first:stop], rule, [stop - first], numbers[first:stop])
        for first, stop in pairwise(cuts)
        if stop > first
    )


def folding_of(segment, **options):
    return Folding(HOLDOUT, pace=lambda: Pace(every_tiles=1), segment_batches=segment, **options)


def folded(rows, sizes, folding, ranks, **options):
    return folded_on(ranks, SegmentSink, {"fc": rows}, sizes, folding, **options)


def assert_same(found, expected):
    assert found.training.same_bits(expected.training)
    assert found.heldout.same_bits(expected.heldout)


@given(
    sizes=st.lists(st.sampled_from([0, 1, 3, 64, 300]), min_size=1, max_size=17).filter(sum),
    segment=st.integers(1, 5),
    ranks=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_any_number_of_ranks_has_the_bits_of_the_tree_over_segments(sizes, segment, ranks):
    rows = rows_like(sum(sizes), 7)
    moments, record, _ = folded(rows, sizes, folding_of(segment), ranks)
    sizes_of_segments = [sum(sizes[first : first + segment]) for first in range(0, len(sizes), segment)]
    if all(sizes_of_segments):  # the twin has no place in its tree for a segment without rows
        assert_same(moments["fc"], twin(rows, sizes, segment))
    else:
        assert_same(moments["fc"], folded(rows, sizes, folding_of(segment), 1)[0]["fc"])
    assert (record.samples, record.layers["fc"].rows) == (len(rows), len(rows))
    assert record.batches.samples.tolist() == sizes


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_are_those_of_the_rows(kind):
    rows = hard_rows(kind)
    sizes = [700] * 14 + [200]
    found = folded(rows, sizes, Folding(HoldoutRule(0.0), segment_batches=3), 2)[0]["fc"].training
    assert_moments_of(found, rows, updates=len(sizes))


def test_shards_are_folded_by_segments_too():
    rows, sizes = rows_like(3000, 9), [250] * 12
    one = folded(rows, sizes, folding_of(2, shards=3), 1)[0]["fc"]
    three = folded(rows, sizes, folding_of(2, shards=3), 3)[0]["fc"]
    assert_same(three, one)
    assert [a.same_bits(b) for a, b in zip(three.shards, one.shards, strict=True)] == [True] * 3
    assert sum(shard.count for shard in one.shards) + one.heldout.count == 3000


def test_a_rank_sends_a_triangle_of_each_record_at_the_end_of_a_round():
    rows, sizes, d = rows_like(4 * 128, 600), [64] * 8, 600
    traffic = folded(rows, sizes, folding_of(4), 2)[2]
    triangle = 8 * sum((min(first + 64, d) - first) * min(first + 64, d) for first in range(0, d, 64))
    assert traffic.array_bytes == 2 * (triangle + 4 * 8 * d)  # training and held-out


def test_once_rounds_have_grown_a_rank_sends_one_sum_a_round():
    sizes, d, segment = [8] * 64, 100, 1
    traffic = folded(rows_like(512, d), sizes, folding_of(segment), 2)[2]
    record = 8 * sum((min(first + 64, d) - first) * min(first + 64, d) for first in range(0, d, 64)) + 4 * 8 * d
    assert traffic.array_bytes == 2 * record * traffic.messages


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2), (2, 2)])
def test_stopped_and_resumed_by_other_ranks_the_bits_are_the_same(tmp_path, before, after):
    rows, sizes = rows_like(4100, 33), [100] * 41
    expected = twin(rows, sizes, 2)

    def run(ranks, stop_at=None):
        seen = []

        def work(link):
            kept = None if link.rank else Checkpoints(tmp_path, "t", "@direct-0", {"test": 1})
            with ThreadPoolExecutor(1) as executor:
                sink = SegmentSink(folding_of(2), executor, link=link, checkpoints=kept)
                seen.append(len(sink.batches))
                send(sink, {"fc": rows}, sizes, stop_at=stop_at)
                return None if link.rank else dict(sink.freeze())["fc"]

        return on_ranks(ranks, work), set(seen)

    with locked(tmp_path):
        with pytest.raises(StoppedError):
            run(before, stop_at=29)
        found, resumed_after = run(after)
        Checkpoints(tmp_path, "t", "@direct-0", {"test": 1}).drop()
    assert_same(found, expected)
    assert min(resumed_after) > 10
    assert len(resumed_after) == 1


def test_another_segment_length_has_other_bits():
    rows, sizes = rows_like(9000, 20), [300] * 30
    one, other = (folded(rows, sizes, folding_of(segment), 1)[0]["fc"] for segment in (2, 3))
    assert not one.training.same_bits(other.training)


def test_loaders_that_differ_between_ranks_are_found():
    rows, sizes = rows_like(900, 4), [100] * 9

    def work(batches, changed):
        def on(link):
            with ThreadPoolExecutor(1) as executor:
                sink = SegmentSink(folding_of(2), executor, link=link)
                send(sink, {"fc": rows}, sizes[: batches if link.rank else 9], changed=changed if link.rank else None)

        return on

    with pytest.raises(FingerprintMismatchError, match="batch 2 is not the same for rank 1 and rank 0"):
        on_ranks(2, work(9, 2))
    with pytest.raises(FingerprintMismatchError, match="batch 7 is there for one only of rank 1 and rank 0"):
        on_ranks(2, work(7, None))


def test_rows_that_are_not_finite_stop_every_rank():
    rows = rows_like(900, 4)
    rows[450, 2] = np.nan
    with pytest.raises(NonFiniteError, match="layer 'fc': activations must be finite"):
        folded(rows, [100] * 9, folding_of(2), 3)


def test_segments_are_of_a_batch_at_least():
    with pytest.raises(InvalidInputError, match="segment_batches must be 1 or more, or 0 for none, got -1"):
        Folding(segment_batches=-1)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_no_more_sums_are_alive_than_the_plan_counts(sizes):
    """Runs of segments, of any lengths, as ranks send them."""
    tree, first, most = SegmentTree(), 0, 0
    for size in sizes:
        own = SegmentTree(SegmentSum(number, 1, {}) for number in range(first, first + size))
        for one in own.take():
            tree.push(one)
        first += size
        most = max(most, len(list(tree)))
        assert [one.first for one in tree] == [0, *accumulate(one.size for one in tree)][:-1]
    assert most + 2 <= sums_alive(first)
    assert len(list(tree)) == first.bit_count()
