"""What both supervisors and their tests share: a child is waited for, and a supervisor is a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.0005
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process that forks has no thread of its own, those of the BLAS among them."""


def wait(child, until=None):
    """Return the child's exit code, or None where `until` came first."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG if until is not None else 0)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(POLL_SECONDS)


@contextmanager
def told_at_the_end(outcome):
    """Print what was found as one line of JSON, also where it is ended by SIGTERM before it is done."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        yield
    finally:
        print(json.dumps(vars(outcome)))  # noqa: T201  # the answer


def outcome_of(supervisor, folder, kills, seed, *more):
    """Run a supervisor of this folder; return the one line of JSON that it prints, and what it says besides."""
    command = [sys.executable, str(Path(__file__).with_name(supervisor)), str(folder), str(kills), str(seed), *more]
    env = {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def how_many(soak, kills):
    """Return (kills, seed): in `make soak` 500, or DALR_STREAM_KILLS, by a new seed; else as many as `kills`."""
    return int(os.environ.get("DALR_STREAM_KILLS", "500" if soak else kills)), int.from_bytes(os.urandom(4)) * soak
