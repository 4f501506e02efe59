"""What steps are made from, as digests: equal digests, nothing to do again.

A digest covers the step's own settings and those of the steps before it. Up to the moments that includes the Python
files that the run file's names reach, and data sets are known by their factory and its options (the batches themselves
are compared one by one at capture). From the moments on it starts from what the records in the store say they were made
from, so a store and a run file are enough to solve, on another machine and without the network's code.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from dalr_stream.errors import StoreNotFoundError
from dalr_stream.storage.durable import readable
from dalr_stream.workflow.runfile.labelled_sections import LabelledSection
from dalr_stream.workflow.runfile.project import Project


def labelled_print(project: Project, section: LabelledSection | None) -> list[Any]:
    """Return what identifies labelled batches and how networks are scored on them; empty where there are none."""
    if section is None:
        return []
    code = code_print(project, project.config.network.build, section.batches, section.metric)
    return [section.model_dump(mode="json", exclude={"cache"}), code]


def code_print(project: Project, *factories: str | None) -> str:
    """Return the digest of the Python that `module:function` names reach."""
    return project.code.digest(*factories)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_print(path: Path, key: str) -> str:
    """Return what identifies a file: its name and the SHA-256 of its bytes; `key` is the run file's key.

    Size and time of change would not do: `rsync -t`, or an archive unpacked over it, can leave both as they were. A
    process reads a file once, and again when the file system says that something of it changed, which nobody can set.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise StoreNotFoundError(f"{key}: there is no file '{path.resolve()}': put it there, or name another") from None
    with readable(path):
        return f"{path.name}:{_digest_as_of(path.resolve(), stat.st_ino, stat.st_size, stat.st_ctime_ns)}"


@cache
def _digest_as_of(path: Path, *_: int) -> str:
    return file_digest(path)
