"""SIGKILL at random instants: nothing lost, nothing doubled, nothing left lying about."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPERVISOR = Path(__file__).with_name("supervisor.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process that forks has no thread of its own, those of the BLAS among them."""


def test_a_capture_and_its_accumulation_killed_at_random_end_in_the_same_bits(tmp_path, soak):
    kills = int(os.environ.get("DALR_STREAM_KILLS", "500" if soak else "10"))
    seed = int.from_bytes(os.urandom(4)) if soak else 0
    command = [sys.executable, str(SUPERVISOR), str(tmp_path), str(kills), str(seed)]
    env = {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)  # noqa: S603
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    print(  # noqa: T201  # the line that `make soak` is run for
        f"kills: {outcome['kills']} over {outcome['trials']} stores (seed {seed}), {outcome['kills_with_rows']} with "
        f"rows committed, {outcome['kills_after_capture']} during accumulation; wrong: {outcome['wrong'] or 'nothing'}"
    )
    assert outcome["wrong"] == [], done.stderr
    assert outcome["kills"] == kills
    assert outcome["commits_of_one_run"] > 20
    assert outcome["kills_with_rows"] > 0


def test_the_supervisor_would_notice(tmp_path):
    """Were a file of a resumed store another one, or one too many, its prints would say so."""
    sys.path.insert(0, str(SUPERVISOR.parent))
    try:
        supervisor = pytest.importorskip("supervisor")
    finally:
        sys.path.pop(0)
    for name in ("a", "b"):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "c" / "0").write_bytes(b"tile")
    assert supervisor.prints(tmp_path / "a") == supervisor.prints(tmp_path / "b")
    (tmp_path / "b" / "c" / ".tmp-litter").write_bytes(b"")
    assert supervisor.prints(tmp_path / "a") != supervisor.prints(tmp_path / "b")
