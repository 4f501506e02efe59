"""Starts the ranks of a job as real processes, and compares what they leave.

They are forked from a server that has imported everything: importing torch takes each longer than its work.
"""

import multiprocessing
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rank_job import ROWS

import dalr_stream as ds
from dalr_stream.storage.store import ActivationStore

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["rank_job", "dalr_stream.workflow.run", "dalr_stream.workflow.following", "torch.distributed", "zarr"]
)


@dataclass
class Ended:
    codes: list
    """Of each rank; -9 where it was killed."""
    errors: list
    """What each wrote to standard error."""
    seconds: list
    """From the first end of a process that failed to the end of each."""


def launch(folder, do, ranks, *, kill=None, **settings):
    """Run `rank_job.main` on `ranks` processes and wait for all of them; `settings` go to the environment.

    `kill` is a rank and the seconds after which it is killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DO": do, **settings}
    logs = [Path(folder).with_suffix(f".rank-{rank}") for rank in range(ranks)]
    started = [
        SERVER.Process(target=one_rank, args=(str(folder), {**common, "RANK": str(rank)}, str(log)))
        for rank, log in enumerate(logs)
    ]
    for process in started:
        process.start()
    if kill is not None:
        started[kill[0]].join(kill[1])
        started[kill[0]].kill()
    ends = {}
    while len(ends) < ranks:
        ends |= {rank: time.monotonic() for rank, one in enumerate(started) if rank not in ends and not one.is_alive()}
        time.sleep(0.02)
    errors = [log.read_text() if log.exists() else "" for log in logs]  # one may be killed before it writes
    codes = [process.exitcode for process in started]
    failed = min((ends[rank] for rank in range(ranks) if codes[rank]), default=0.0)
    return Ended(codes, errors, [ends[rank] - failed for rank in range(ranks)])


def one_rank(folder, environment, log):
    """What each process does."""
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 2)
    import rank_job

    try:
        rank_job.main(folder)
    except ds.DalrStreamError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(1)


def moments_in(store):
    opened = ds.open_store(store)
    return {layer: opened.layer(layer, target="target") for layer in ActivationStore(store).domain("target").names}


def assert_same_moments(store, other):
    one, two = moments_in(store), moments_in(other)
    assert one.keys() == two.keys()
    for layer in one:
        assert one[layer].inputs.same_bits(two[layer].inputs)
        assert one[layer].heldout.same_bits(two[layer].heldout)


def require_whole(store):
    """No row is lost or doubled."""
    for layer in moments_in(store).values():
        assert layer.inputs.count + layer.heldout.count == ROWS
