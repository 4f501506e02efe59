"""Scores of networks that a run saves or begins with, each block read once for all batches.

A metric that does more with a network than call it once for each batch is given the network whole, every block of it
read again for each batch; so it is where the disk is short. Both are said.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from dalr_stream.errors import DiskSpaceError, FingerprintMismatchError, UnsupportedLayerError
from dalr_stream.network.blocks.scored import Scored, scored_by_blocks
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.json_record import digest_of
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.scores.scoring import Scoring
from dalr_stream.workflow.steps.session import Session

WHOLE = (UnsupportedLayerError, FingerprintMismatchError, DiskSpaceError)
"""What says that a metric must be given the network whole."""


def score_by_blocks(session: Session, label: str, model: nn.Module, score: Scoring, fingerprint: str) -> Scored | None:
    """Return how a network scores and what its layers computed; None, which is noted, where it must be run whole.

    Killed, it goes on in that block.
    """
    project, made_from = session.project, digest_of([fingerprint, label])
    folder = project.unfinished / f"evaluate-{made_from[:16]}"
    try:
        return _scored(project, model, score, folder, made_from, session.progress)
    except WHOLE as error:
        session.progress.note(f"evaluate: every block is read again for each batch: {error}")
        return None


def score_once_by_blocks(project: Project, score: Scoring) -> None:
    """Score the uncompressed network, and leave nothing behind."""
    with TemporaryDirectory() as folder:
        try:
            _scored(project, project.recorded, score, Path(folder), None, Silent())
        except WHOLE:
            score(project.recorded)


def _scored(  # what is scored, how, and where what blocks give lies meanwhile
    project: Project, model: nn.Module, score: Scoring, folder: Path, made_from: str | None, progress: Progress
) -> Scored:
    blocks = project.config.network.blocks or True
    found = scored_by_blocks(
        model, score.metric, score.batches, folder, blocks=blocks, made_from=made_from, progress=progress
    )
    return dataclasses.replace(found, value=score.checked(found.value))
