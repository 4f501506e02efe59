"""Strips on ranks: however the sums of layers are shared, the bits are those of one process by the same rule."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from folded import KINDS, assert_moments_of, hard_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from linked import StoppedError, folded_on, on_ranks, send
from rows_on_disk import rows_like
from soaking import in_soak

from dalr_stream.errors import FingerprintMismatchError, NonFiniteError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.lock import locked
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.lanes import Pace
from dalr_stream.streaming.ranks.link import Alone
from dalr_stream.streaming.ranks.segment_sink import SegmentSink
from dalr_stream.streaming.ranks.strip_checkpoints import left_in_strips
from dalr_stream.streaming.ranks.strip_sink import StripSink

HOLDOUT = HoldoutRule(0.3, seed=2)
WIDTHS = {"wide": 2100, "narrow": 5, "odd": 1030}
"""Three blocks of rows, one, and two of which the last has 6."""


def folding_of(segment=0, holdout=HOLDOUT, **options):
    return Folding(holdout, pace=lambda: Pace(every_tiles=1), segment_batches=segment, **options)


def rows_of(samples, widths=None):
    return {name: rows_like(samples, d, seed=d) for name, d in (widths or WIDTHS).items()}


def one_process(layers, sizes, folding):
    with ThreadPoolExecutor(1) as executor:
        sink = SegmentSink(folding, executor) if folding.segment_batches else FoldSink(folding, executor)
        send(sink, layers, sizes)
        return dict(sink.freeze())


def shared(layers, sizes, folding, ranks, **options):
    return folded_on(ranks, StripSink, layers, sizes, folding, **options)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, split in expected.items():
        assert found[name].training.same_bits(split.training), name
        assert found[name].heldout.same_bits(split.heldout), name
        assert [a.same_bits(b) for a, b in zip(found[name].shards, split.shards, strict=True)] == [True] * len(
            split.shards
        )


@pytest.mark.parametrize("segment", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_has_the_bits_of_one_process(segment, ranks):
    sizes = [40, 0, 64, 64, 1, 64, 30]
    layers, folding = rows_of(sum(sizes)), folding_of(segment)
    moments, record, _ = shared(layers, sizes, folding, ranks)
    assert_same(moments, one_process(layers, sizes, folding))
    assert record.batches.samples.tolist() == sizes
    assert {name: known.rows for name, known in record.layers.items()} == dict.fromkeys(WIDTHS, sum(sizes))


@settings(max_examples=12)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 3, 64, 300]), min_size=1, max_size=9).filter(sum),
    segment=st.sampled_from([0, 1, 3]),
    shards=st.sampled_from([1, 3]),
    share=st.sampled_from([0.0, 0.3]),
    ranks=st.sampled_from([1, 2, 3, 5, 8]),
)
def test_by_any_rule_and_in_any_batches_the_bits_are_the_same(sizes, segment, shards, share, ranks):
    layers = rows_of(sum(sizes), {"a": 9, "cut": 1025, "b": 4})
    folding = folding_of(segment, HoldoutRule(share, seed=1), shards=shards)
    assert_same(shared(layers, sizes, folding, ranks)[0], one_process(layers, sizes, folding))


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_are_those_of_the_rows(kind):
    rows = np.tile(hard_rows(kind)[::80], (1, 129))[:, :1030]
    found = shared({"fc": rows}, [20] * 6 + [5], folding_of(holdout=HoldoutRule(0.0)), 2)[0]["fc"].training
    assert_moments_of(found, rows, updates=7)


def test_fewer_samples_than_ranks_and_batches():
    layers, folding = rows_of(1), folding_of(holdout=HoldoutRule(0.0))
    assert_same(shared(layers, [1], folding, 4)[0], one_process(layers, [1], folding))


def test_single_precision_in_strips_has_the_bits_of_the_whole():
    layers, folding = rows_of(200), folding_of(precision="single")
    assert_same(shared(layers, [50] * 4, folding, 2)[0], one_process(layers, [50] * 4, folding))


def test_layers_that_read_one_tensor_are_folded_and_sent_once():
    rows = rows_like(90, 1030)
    both, alone = {"a": rows, "b": rows}, {"a": rows}

    class Slices(dict):
        """The same slice for both names, as a hook gives them."""

    def work(layers):
        def on(link):
            with ThreadPoolExecutor(1) as executor:
                sink = StripSink(folding_of(), executor, link=link)
                for number in range(3):
                    cut = rows[number * 30 : number * 30 + 30]
                    if not sink.skip(number, 30, str(number)):
                        sink.write(RowBatch(30, str(number), Slices.fromkeys(layers, cut)))
                sink.finish()
                return None if link.rank else (dict(sink.freeze()), sink.record().shared, link.traffic.array_bytes)

        return on_ranks(2, on)

    moments, same, received = work(both)
    expected, _, once = work(alone)
    assert_same(moments, expected)
    assert (same, received) == ({"b": "a"}, once)


def test_rank_0_receives_the_rows_of_the_others_and_their_strips_once():
    d, sizes = 4096, [16] * 4
    traffic = shared(rows_of(64, {"fc": d}), sizes, folding_of(holdout=HoldoutRule(0.0)), 2)[2]
    left, below = 1024 * 1024 * 8, 1024 * 1024 * 8  # of rank 1's blocks 1 and 2: rows left of them, and their columns
    strips = left * (1 + 2) + below * (2 + 2 + 1)  # columns of block 0 in both, of 1 in both, of 2 in itself
    vectors = 0  # rank 0 has the last strip
    assert traffic.array_bytes == 2 * 16 * d * 4 + strips + vectors


# --- stopped and resumed ------------------------------------------------------------------------------------------


def run_kept(folder, layers, sizes, folding, ranks, stop_at=None):
    """Fold with checkpoints, by a single process's own sink where `ranks` is none; return also where it began."""
    begun = []

    def work(link):
        kept = None if link.rank else Checkpoints(folder, "t", "@direct-0", {"test": 1})
        with ThreadPoolExecutor(1) as executor:
            if ranks is None and not left_in_strips(kept):
                new = SegmentSink if folding.segment_batches else FoldSink
                sink = new(folding, executor, checkpoints=kept)
            else:
                sink = StripSink(folding, executor, link=link, checkpoints=kept)
            begun.append(len(sink.batches))
            send(sink, layers, sizes, stop_at=None if link.rank else stop_at)
            return None if link.rank else dict(sink.freeze())

    return (work(Alone()) if ranks is None else on_ranks(ranks, work)), begun


@pytest.mark.parametrize(
    ("segment", "before", "after"),
    [
        (0, 2, 3),
        (0, None, 2),
        (0, 3, None),
        *in_soak((0, 3, 2), (0, 4, 1)),
        (1, 3, 2),
        *in_soak((1, None, 2), (1, 3, None)),
    ],
)
def test_stopped_and_resumed_by_other_ranks_the_bits_are_the_same(tmp_path, segment, before, after):
    sizes, folding = [1500] * 5 + [20], folding_of(segment)  # a tile and a part of one are folded when it stops
    layers = rows_of(sum(sizes), {"wide": 1100, "narrow": 5})
    with locked(tmp_path):
        with pytest.raises(StoppedError):
            run_kept(tmp_path, layers, sizes, folding, before, stop_at=4)
        found, begun = run_kept(tmp_path, layers, sizes, folding, after)
        Checkpoints(tmp_path, "t", "@direct-0", {"test": 1}).drop()
    assert_same(found, one_process(layers, sizes, folding))
    assert set(begun) <= {3, 4}
    assert len(set(begun)) == 1


def test_a_checkpoint_with_a_block_that_is_damaged_or_missing_is_not_used(tmp_path):
    sizes, folding = [10] * 5, folding_of(1)
    layers = rows_of(50, {"wide": 1100})
    with locked(tmp_path):
        with pytest.raises(StoppedError):
            run_kept(tmp_path, layers, sizes, folding, 2, stop_at=3)
        block = next((tmp_path / "unfinished" / "t" / "@direct-0").glob("wide-*@0-1024"))
        next(block.rglob("c/0/0")).write_bytes(b"no chunk")
        found, begun = run_kept(tmp_path, layers, sizes, folding, 3)
        Checkpoints(tmp_path, "t", "@direct-0", {"test": 1}).drop()
    assert set(begun) == {0}
    assert_same(found, one_process(layers, sizes, folding))


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_loaders_that_differ_between_ranks_are_found():
    layers, sizes = rows_of(900, {"fc": 4}), [100] * 9

    def work(batches, changed):
        def on(link):
            with ThreadPoolExecutor(1) as executor:
                sink = StripSink(folding_of(), executor, link=link)
                send(sink, layers, sizes[: batches if link.rank else 9], changed=changed if link.rank else None)

        return on

    with pytest.raises(FingerprintMismatchError, match="batch 2 is not the same for rank 0 and rank 1"):
        on_ranks(2, work(9, 2))
    for batches in (6, 7, 8):
        with pytest.raises(FingerprintMismatchError, match="is not the same for rank"):
            on_ranks(2, work(batches, None))


def test_rows_that_are_not_finite_stop_every_rank():
    layers = rows_of(900, {"fc": 4})
    layers["fc"][450, 2] = np.nan
    with pytest.raises(NonFiniteError, match="layer 'fc': activations must be finite"):
        shared(layers, [100] * 9, folding_of(), 3)
