"""The digits network of one seed as `run.toml` trains it, kept in `runs/digits-seed<N>` and trained once."""

from __future__ import annotations

from pathlib import Path

import dalr_stream as ds

RUN_FILE = Path(__file__).with_name("run.toml")


def run_of(seed: int, *, visible: bool = False) -> ds.Run:
    """Return the run of `run.toml` with this seed, whether or not any of it is done; `visible` shows its progress."""
    settings = [f"run.seed={seed}", f'run.output="../../runs/digits-seed{seed}"']
    return ds.Run.open(RUN_FILE, set=settings, progress=ds.show_progress() if visible else None)


def trained(seed: int) -> ds.Run:
    """Return it with its network trained, now or before."""
    run = run_of(seed)
    run.train()
    return run
