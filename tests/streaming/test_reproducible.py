"""The same rows give the same bits: any workers, threads or processes, BLAS threads, interruptions, either route.

Widths are awkward on purpose: BLAS kernels treat the columns beyond a multiple of 8 apart, and a library that is left
to share a product among its threads cuts it elsewhere for each number of them.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rows_on_disk import rows_like, store_of, write
from soaking import in_soak
from threadpoolctl import threadpool_limits

from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.lock import locked
from dalr_stream.streaming.cluster import open_cluster
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding, Threads
from dalr_stream.streaming.lanes import LaneTask, Pace
from dalr_stream.streaming.schedule import Watch, accumulate_layer

WIDTHS = (129, 300, 1537, *in_soak(100, 255, 513))
HOLDOUT = HoldoutRule(0.2, seed=5)


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def cluster():
    with open_cluster(workers=2) as opened:
        yield opened


@pytest.fixture(scope="module", params=WIDTHS)
def rows(request):
    """A tile for every lane and two more, the last one shorter."""
    rule = FoldRule(request.param)
    return {"fc": rows_like(rule.lanes * rule.tile_rows + 5_000, request.param)}


@pytest.fixture(scope="module")
def task(rows, tmp_path_factory):
    store = store_of(tmp_path_factory.mktemp("store"), rows, len(rows["fc"]))
    return LaneTask(store.root, "target", "fc", FoldRule(rows["fc"].shape[1], HOLDOUT)), store


@pytest.fixture(scope="module")
def expected(task):
    """One worker, one BLAS thread, nothing interrupted."""
    with threadpool_limits(1):
        return folded(task, Threads(1))


def folded(task, workers, watch=None):
    return accumulate_layer(task[0], workers, watch)


def assert_same_bits(found, expected):
    assert found.training.same_bits(expected.training)
    assert found.heldout.same_bits(expected.heldout)


@pytest.mark.parametrize(("workers", "blas"), [(1, 2), (3, 1), (8, 2), *in_soak((2, 1), (2, 2), (3, 2))])
def test_the_bits_do_not_depend_on_the_threads(task, expected, workers, blas):
    with threadpool_limits(blas):
        assert_same_bits(folded(task, Threads(workers)), expected)


def test_the_bits_do_not_depend_on_the_processes(task, expected, cluster):
    assert_same_bits(folded(task, cluster), expected)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1)])
def test_a_fold_interrupted_and_resumed_by_other_workers_has_the_same_bits(task, expected, before, after):
    checkpoints = Checkpoints(task[0].root, "target", "fc", {"test": [before, after]})
    seen = []

    def second_tile(rows):  # a checkpoint follows the report of its tile
        seen.append(rows)
        if len(seen) == 2:
            raise StoppedError

    def every_tile():
        return Pace(every_tiles=1)

    with locked(task[0].root):
        with pytest.raises(StoppedError):
            folded(task, Threads(before), Watch(second_tile, checkpoints, every_tile))
        assert checkpoints.exists
        found = folded(task, Threads(after), Watch(None, checkpoints, every_tile))
        checkpoints.drop()
    assert_same_bits(found, expected)


@pytest.mark.parametrize(("workers", "size"), [(1, 640), (3, 30_000)])
def test_the_direct_route_has_the_bits_of_the_way_through_a_store(rows, expected, workers, size):
    with ThreadPoolExecutor(workers) as executor, threadpool_limits(2):
        sink = FoldSink(Folding(HOLDOUT), executor)
        write(sink, rows, len(rows["fc"]), size)
        sink.finish()
        assert_same_bits(dict(sink.freeze())["fc"], expected)


def test_the_bits_are_of_these_rows_in_this_order(rows, expected):
    """What all the others would also pass if nothing depended on anything."""
    changed = rows["fc"][::-1]
    with ThreadPoolExecutor(1) as executor:
        sink = FoldSink(Folding(HOLDOUT), executor)
        write(sink, {"fc": np.ascontiguousarray(changed)}, len(changed), 640)
        sink.finish()
        assert not dict(sink.freeze())["fc"].training.same_bits(expected.training)
