"""Scores that an evaluation has found so far, so that one that was killed goes on after the last of them.

One small file, replaced whole after each network. It belongs to one fingerprint, by its name, and goes when the
evaluation is written. Scores are kept to the bit: JSON's numbers are read back as they were written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dalr_stream.storage.durable import make_folder, write_file


class KeptScores:
    """The scores in one file, by what was scored."""

    def __init__(self, path: Path) -> None:
        """Read those of an interrupted evaluation, where there are some."""
        self._path = path
        self._known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __len__(self) -> int:
        return len(self._known)

    def once(self, what: str, score: Callable[[], float]) -> float:
        """Return the score kept of `what`, or find it and keep it."""
        if what not in self._known:
            self._known[what] = score()
            make_folder(self._path.parent)
            write_file(self._path, json.dumps(self._known, indent=1).encode())
        return self._known[what]
