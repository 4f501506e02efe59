"""Which networks of a run go through memory block by block, and which are there whole.

Block by block, where the run file says so and its weights are on disk: recording layers and compressing always;
scoring where only the networks that are saved are scored.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dalr_stream.network.blocks.opened import open_network
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.saved import checkpoint
from dalr_stream.workflow.runfile.project import Project


def compresses_by_blocks(project: Project) -> bool:
    """Tell whether the network is compressed block by block."""
    return bool(project.config.network.blocks) and weights_elsewhere(project.recorded) is not None


def scores_by_blocks(project: Project) -> bool:
    """Tell whether networks are scored block by block."""
    section = project.config.evaluate
    alone = section is not None and not section.ranks and not section.compare
    return alone and bool(project.config.network.blocks) and weights_elsewhere(project.recorded) is not None


def scored(project: Project) -> nn.Module:
    """Return the uncompressed network as it is scored."""
    return project.recorded if scores_by_blocks(project) else project.network


def loaded(project: Project, folder: Path) -> nn.Module:
    """Return a network that the run saved, as it is scored."""
    if scores_by_blocks(project):
        return open_network(project.code.build, folder, device=project.config.network.device or "cpu")
    return checkpoint.load(folder, project.code.placed)
