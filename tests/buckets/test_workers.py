"""Workers of a dask cluster that share the bucket alone: killed, refused, of another build: same bits, or one line."""

import os
import signal
import sys
import threading
from datetime import timedelta

import pytest
from s3_server import Fault
from stores_in_buckets import accumulate, capture, contents, job, whole_tiles

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import DalrStreamWarning, InvalidInputError, ResourceError, StoreError
from dalr_stream.storage.places import bucket
from dalr_stream.streaming import cluster as cluster_module
from dalr_stream.streaming import workers
from dalr_stream.streaming.cluster import open_cluster

pytestmark = [  # of distributed itself, while worker processes come and go
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def _tiles():
    """Workers know the tiles that users have."""
    with whole_tiles():
        yield


@pytest.fixture(scope="module")
def opened(s3):  # noqa: ARG001  # the workers find the server in the environment
    with open_cluster(workers=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(opened, monkeypatch):
    """Two workers as they were started, whatever a test made of them."""
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 120.0)
    opened.client.wait_for_workers(2, timeout=120)
    yield opened
    opened.client.wait_for_workers(2, timeout=120)
    opened.client.run(_as_it_was)


def folded(store, cluster, **options):
    accumulate_stored(store, domain="target", folding=ds.Folding(ds.HoldoutRule(0.3), cluster, **options))


def of_one(cluster):
    return [next(iter(cluster.client.nthreads()))]


def test_they_read_the_rows_themselves(cluster, in_s3, s3, tmp_path):
    job(tmp_path)
    capture(in_s3)
    s3.requests.clear()
    folded(in_s3, cluster)
    assert s3.counted("/activations/target/0/c/0/0") == {"GET": 1}
    assert contents(in_s3) == contents(tmp_path)


def test_all_killed_midway_and_started_again_by_their_nannies(cluster, in_s3, s3, tmp_path):
    job(tmp_path)
    capture(in_s3)
    pids, killed = list(cluster.client.run(os.getpid).values()), threading.Event()

    def kill_all(_number, method, path):
        if method == "GET" and "/c/" in path and not killed.is_set():
            killed.set()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    s3.fault = kill_all
    folded(in_s3, cluster)
    assert killed.is_set()
    assert contents(in_s3) == contents(tmp_path)


def test_the_one_that_may_take_part_is_killed_and_comes_back_by_another_address(cluster, in_s3, s3, tmp_path):
    job(tmp_path)
    capture(in_s3)
    other, good = list(cluster.client.nthreads())
    cluster.client.run(_with_another_numpy, workers=[other])
    pid, killed = cluster.client.run(os.getpid)[good], threading.Event()

    def kill(_number, method, path):
        if method == "GET" and "/c/" in path and not killed.is_set():
            killed.set()
            os.kill(pid, signal.SIGKILL)

    s3.fault = kill
    with pytest.warns(DalrStreamWarning, match=r"left out: worker '.*': folds with numpy 0\.0\.1 and not "):
        folded(in_s3, cluster)
    assert killed.is_set()
    assert contents(in_s3) == contents(tmp_path)


def test_whoever_may_not_read_is_named_with_the_remedy(cluster, in_s3, s3, tmp_path):
    job(tmp_path)
    capture(in_s3)
    blind = of_one(cluster)
    cluster.client.run(_with_another_key, workers=blind)
    s3.refuses = "somebody-else"
    try:
        with pytest.warns(DalrStreamWarning, match="refuses the request .*check the credentials") as warned:
            folded(in_s3, cluster)
        assert blind[0] in str(warned[0].message)
        assert contents(in_s3) == contents(tmp_path)
        cluster.client.run(_with_another_key)
        with pytest.raises(ResourceError, match=r"none of the 2 workers can take part: .*bucket for which they have"):
            folded(in_s3, cluster, shards=2)
    finally:
        s3.refuses = ""


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("_without_obstore", r"needs obstore: pip install 'dalr_stream\[buckets\]'"),
        ("_of_another_version", r"cannot run dalr_stream .*: install the same version there"),
        ("_with_another_numpy", r"folds with numpy 0\.0\.1 and not .*or accept it with any_blas"),
        ("_with_another_blas", r"folds with BLAS abacus and not openblas .*or accept it with any_blas"),
    ],
)
def test_workers_of_another_installation_are_one_line(cluster, in_s3, spoilt, message):
    capture(in_s3)
    cluster.client.run(globals()[spoilt])
    with pytest.raises(ResourceError, match=message) as refused:
        folded(in_s3, cluster)
    assert "\n" not in str(refused.value)
    assert all(worker in str(refused.value) for worker in cluster.client.nthreads())


def test_another_build_is_accepted_where_that_is_asked_for(cluster, in_s3):
    capture(in_s3)
    cluster.client.run(_with_another_blas)
    folded(in_s3, cluster, any_blas=True)
    accumulate(in_s3)  # up to date, as it is as good


def test_a_server_that_fails_later_is_one_line_and_names_the_worker(cluster, in_s3, s3):
    capture(in_s3)
    cluster.client.run(_with_few_tries)
    s3.fault = lambda _number, method, path: Fault.ERROR if method == "GET" and "/c/" in path else None
    with pytest.raises(StoreError, match=r"cluster: worker 'tcp://.*': 's3://birds.*/c/.* cannot be reached"):
        folded(in_s3, cluster)


def test_a_task_that_kills_every_worker_is_one_line(cluster, in_s3, s3):
    capture(in_s3)
    cluster.client.cluster.scheduler.allowed_failures = 0
    pids = list(cluster.client.run(os.getpid).values())

    def kill(_number, method, path):
        if method == "GET" and "/c/" in path:
            while pids:
                os.kill(pids.pop(), signal.SIGKILL)

    s3.fault = kill
    with pytest.raises(ResourceError, match=r"each worker that did 'fold-target-.*' died, .*more memory"):
        folded(in_s3, cluster)
    cluster.client.cluster.scheduler.allowed_failures = 3


def test_memory_lies_in_one_process(cluster, in_memory):
    capture(in_memory)
    with pytest.raises(InvalidInputError, match="memory:// lies in one process"):
        folded(in_memory, cluster)


# --- what is made of a worker ----------------------------------------------------------------------------------------

_MADE = pytest.MonkeyPatch()
"""In each worker its own."""


def _as_it_was():
    _MADE.undo()
    bucket.connect.cache_clear()


def _with_another_key():
    _MADE.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    bucket.connect.cache_clear()


def _without_obstore():
    for name in ("obstore", "obstore.store"):
        _MADE.setitem(sys.modules, name, None)
    bucket.connect.cache_clear()


def _of_another_version():
    _MADE.setitem(sys.modules, "dalr_stream.streaming.workers", None)


def _with_another_numpy():
    known = workers.version
    _MADE.setattr(workers, "version", lambda name: "0.0.1" if name == "numpy" else known(name))


def _with_another_blas():
    _MADE.setattr(workers, "blas_build", lambda: "abacus")


def _with_few_tries():
    _MADE.setattr(bucket, "FIRST_PAUSE", timedelta(milliseconds=1))
    _MADE.setattr(bucket, "RETRY_LIMIT", 1)
    _MADE.setattr(bucket, "TRIES", 1)
    bucket.connect.cache_clear()
