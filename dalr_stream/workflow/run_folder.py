"""The run's own folder: one command at a time, and what a killed command left behind is cleared.

The folder may hold other things: only names that this package makes, in the places where it makes them, are removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dalr_stream.errors import StoreLockedError
from dalr_stream.storage.durable import INCOMING, OUTGOING, explained, make_folder
from dalr_stream.workflow import size_curve
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import profile, step_log

LOCK = "run.lock"


@contextmanager
def one_command(project: Project) -> Iterator[None]:
    """Hold the run's folder, having cleared what a killed command left; raises StoreLockedError where another does."""
    folder = project.output
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    make_folder(folder)
    with explained(folder):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise StoreLockedError(
                f"'{folder}' is in use by another command: wait for it, or name another run.output"
            ) from None
    try:
        with explained(folder):
            _clear(project)
        yield
    finally:
        lock.release()


def _clear(project: Project) -> None:
    """Put back or remove what lies there, or in a budget's folder, under a temporary name of one of the run's files."""
    own = {path.name for path in _own(project)}
    _clear_folder(project.output, own)
    for folder in (project.output / size_curve.FOLDER, *(project.output / size_curve.FOLDER).glob("*/")):
        if folder.is_dir() and not folder.is_symlink():
            _clear_folder(folder, own | size_curve.FILES)


def _clear_folder(folder: Path, own: set[str]) -> None:
    names = "|".join(map(re.escape, sorted(own)))
    for path in sorted(folder.glob(f"{OUTGOING}*")):
        match = re.fullmatch(rf"{re.escape(OUTGOING)}({names})-[0-9a-f]{{8}}", path.name)
        if match and not (folder / match[1]).exists():  # killed between the two renames: it is all there is
            path.rename(folder / match[1])
    litter = re.compile(rf"({re.escape(INCOMING)}|{re.escape(OUTGOING)})({names})-[0-9a-f]{{8}}")
    for path in folder.iterdir():
        if litter.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _own(project: Project) -> tuple[Path, ...]:
    """Return what steps write into the folder, whole, under a temporary name first; the store clears its own."""
    decided = (project.compression, project.swept, project.stability)
    records = (project.weights_record, project.evaluation, *decided, project.finetuning)
    folders = (
        project.compressed,
        project.finetuned,
        project.sequence,
        project.pass_moments,
        project.unfinished,
        project.measuring,
    )
    files = (project.weights, project.report_record, project.output / step_log.FILE, project.output / profile.FILE)
    return (*records, *folders, *files)
