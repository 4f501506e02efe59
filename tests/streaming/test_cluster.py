"""The same call on a cluster of real processes: the same bits, also when a worker is killed midway."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from rows_on_disk import rows_like, store_of

from dalr_stream.errors import DalrStreamWarning, InvalidInputError, ResourceError, StoreDamagedError
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.streaming import cluster as cluster_module
from dalr_stream.streaming.cluster import Cluster, open_cluster
from dalr_stream.streaming.folding import Threads
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.schedule import Watch, accumulate_layer
from dalr_stream.streaming.workers import Here

HOLDOUT = HoldoutRule(0.2, seed=5)
pytestmark = [  # of distributed itself, while worker processes come and go
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    with open_cluster(workers=3) as opened:
        yield opened


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Eight lanes of a few tiles, and one lane wide enough for strips that take a while."""
    rows = {"narrow": rows_like(30_000, 100), "wide": rows_like(6_000, 2_500, seed=1)}
    return store_of(tmp_path_factory.mktemp("store"), {"narrow": rows["narrow"]}, 30_000), store_of(
        tmp_path_factory.mktemp("wide"), {"wide": rows["wide"]}, 6_000
    )


def folded(store, layer, workers, done=None):
    task = LaneTask(store.root, "target", layer, FoldRule(store.rows("target", layer).features, HOLDOUT))
    return accumulate_layer(task, workers, Watch(done))


def assert_same_bits(one, other):
    assert one.training.same_bits(other.training)
    assert one.heldout.same_bits(other.heldout)


@pytest.mark.parametrize("layer", ["narrow", "wide"])
def test_processes_give_the_bits_of_threads(cluster, store, layer):
    here = store[layer == "wide"]
    told = []
    assert_same_bits(folded(here, layer, cluster, told.append), folded(here, layer, Threads(2)))
    assert sum(told) == here.rows("target", layer).rows


def test_a_worker_killed_midway_changes_nothing(cluster, store):
    _, wide = store
    expected = folded(wide, "wide", Threads(2))
    killed = []

    def kill_one_that_works():
        pids = cluster.client.run(os.getpid)
        while not killed:
            busy = [address for address, tasks in cluster.client.processing().items() if tasks]
            if busy:
                os.kill(pids[busy[0]], signal.SIGKILL)
                killed.append(busy[0])
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one_that_works)
    killer.start()
    found = folded(wide, "wide", cluster)
    killer.join()
    assert killed
    assert_same_bits(found, expected)


def test_what_a_worker_refuses_is_raised_here(cluster, tmp_path):
    store = store_of(tmp_path, {"fc6": rows_like(9000, 4)}, 9000)
    chunk = tmp_path / "activations/target/fc6/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(StoreDamagedError, match="tile 1 of layer 'fc6' on 'target' is damaged"):
        folded(store, "fc6", cluster)


def test_a_running_scheduler_is_used_by_its_address(cluster, store):
    with open_cluster(scheduler=cluster.client.scheduler.address) as other:
        assert other.workers == 3
        assert np.isfinite(folded(store[0], "narrow", Cluster(other.client)).training.mean).all()


@contextmanager
def started(log, *command):
    """A process of distributed, which writes into the file `log`."""
    with log.open("w") as output:
        command = [sys.executable, "-m", *command, "--no-dashboard"]
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:  # noqa: S603
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler of its own process and its address; nobody works for it yet."""
    log = tmp_path / "scheduler.log"
    with started(log, "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1") as process:
        while (found := re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())) is None:
            time.sleep(0.05)
        yield process, found[0]


@pytest.fixture
def worker(tmp_path, scheduler):
    """A worker of that scheduler."""
    command = "distributed.cli.dask_worker", scheduler[1], "--nthreads", "1", "--no-nanny"
    with started(tmp_path / "worker.log", *command) as process:
        yield process


def test_a_scheduler_without_workers_is_one_line_in_time(scheduler, store, monkeypatch):
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 2.0)
    begun = time.monotonic()
    with (
        open_cluster(scheduler=scheduler[1]) as opened,
        pytest.raises(ResourceError, match=r"has had no worker for the job for 2 s: start some there, and run the"),
    ):
        folded(store[0], "narrow", opened)
    assert time.monotonic() - begun < 20


def test_the_loss_of_the_last_worker_is_one_line_in_time(scheduler, worker, store, monkeypatch):
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 3.0)
    with open_cluster(scheduler=scheduler[1]) as opened:
        opened.client.wait_for_workers(1, timeout=60)
        killer = threading.Timer(0.5, worker.kill)
        killer.start()
        with pytest.raises(ResourceError, match="has had no worker for the job for 3 s"):
            opened.map(time.sleep, {"long": (60,)}, lambda _: None, reads=[store[0].root / "manifest.json"])


@pytest.mark.usefixtures("worker")
def test_the_loss_of_the_scheduler_is_one_line_in_time(scheduler, store):
    begun = time.monotonic()
    with open_cluster(scheduler=scheduler[1]) as opened:
        opened.client.wait_for_workers(1, timeout=60)
        threading.Timer(0.5, scheduler[0].kill).start()
        with pytest.raises(ResourceError, match=f"the scheduler at '{scheduler[1]}' is gone: start it, and run the"):
            opened.map(time.sleep, {"long": (60,)}, lambda _: None, reads=[store[0].root / "manifest.json"])
    assert time.monotonic() - begun < 60


def test_workers_that_do_not_see_the_store_are_left_out(cluster, store, monkeypatch):
    here, blind = store[0], []
    run = cluster.client.run

    def seen(look, files, libraries, **options):
        there = run(look, files, libraries, **options)
        blind.append(next(iter(there)))
        return {**there, blind[0]: dataclasses.replace(there[blind[0]], digests=["another"])}

    monkeypatch.setattr(cluster.client, "run", seen)
    with pytest.warns(DalrStreamWarning, match="left out: worker 'tcp://.*': does not see .*it is another one there"):
        found = folded(here, "narrow", cluster)
    assert_same_bits(found, folded(here, "narrow", Threads(2)))
    monkeypatch.setattr(
        cluster.client, "run", lambda *_, **__: dict.fromkeys(cluster.client.nthreads(), Here([], "no such file", {}))
    )
    with pytest.raises(
        ResourceError,
        match=r"none of the 3 workers can take part: workers 'tcp.* does not see .* on a disk that all workers see",
    ):
        folded(here, "narrow", cluster)


def test_a_cluster_is_named_in_one_way():
    for arguments in ({}, {"scheduler": "tcp://127.0.0.1:1", "workers": 2}):
        with pytest.raises(InvalidInputError, match="exactly one"), open_cluster(**arguments):
            pass


def test_a_scheduler_that_is_not_there_is_named():
    with (
        pytest.raises(ResourceError, match=r"no scheduler answers at 'tcp://127\.0\.0\.1:9'"),
        open_cluster(scheduler="tcp://127.0.0.1:9", timeout_seconds=1),
    ):
        pass
