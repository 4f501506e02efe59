"""The digits network of one seed as `run.toml` trains it, kept in `runs/digits-seed<N>` and trained once."""

from __future__ import annotations

from pathlib import Path

from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

RUN_FILE = Path(__file__).with_name("run.toml")


def project_of(seed: int) -> Project:
    """Return the main job with this seed, whether or not any of it is done."""
    config = load_config(RUN_FILE, [f"run.seed={seed}", f'run.output="../../runs/digits-seed{seed}"'])
    return Project(config, RUN_FILE.parent)


def trained(seed: int) -> Project:
    """Return it with its network trained, now or before."""
    project = project_of(seed)
    Run(project).train()
    return project
