"""SIGKILL at random instants of whole runs, settings changed in between, two commands at once: nothing is stale."""

import json
import os
import subprocess
import sys
from pathlib import Path

SUPERVISOR = Path(__file__).with_name("run_supervisor.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process that forks has no thread of its own, those of the BLAS among them."""


def test_runs_killed_at_random_end_in_the_same_files(tmp_path, soak):
    kills = int(os.environ.get("DALR_STREAM_KILLS", "500" if soak else "5"))
    seed = int.from_bytes(os.urandom(4)) if soak else 0
    command = [sys.executable, str(SUPERVISOR), str(tmp_path), str(kills), str(seed)]
    env = {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)  # noqa: S603
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    print(  # noqa: T201  # the line that `make soak` is run for
        f"kills: {outcome['kills']} over {outcome['trials']} runs (seed {seed}), {outcome['commands']} commands, "
        f"{outcome['refused']} refused beside another; wrong: {outcome['wrong'] or 'nothing'}"
    )
    assert outcome["wrong"] == [], done.stderr
    assert outcome["kills"] >= kills
    assert outcome["commands"] > outcome["kills"]
