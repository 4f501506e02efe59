"""Which steps are fresh: what each one was last made from, in one small file beside the artefacts.

A step is fresh when its fingerprint is the one on record and its artefacts are still there. The configuration it was
made by, every default filled in, is kept beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dalr_stream.storage.durable import make_folder, write_file

FILE = "steps.json"


class StepLog:
    """The record of one output folder. A file that cannot be read counts as empty: every step is stale then."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self._configuration = dict(configuration)
        self._done: dict[str, dict[str, Any]] = {}
        try:
            plain = json.loads(self._path.read_text(encoding="utf-8"))
            self._done = {name: {**step} for name, step in plain.items()}
        except (FileNotFoundError, ValueError, AttributeError, TypeError):
            return

    def fresh(self, step: str, fingerprint: str, artefacts: Iterable[Path]) -> bool:
        """Tell whether `step` need not run again."""
        return self._done.get(step, {}).get("made_from") == fingerprint and all(path.exists() for path in artefacts)

    def done(self, step: str, fingerprint: str) -> None:
        """Record that `step` was made; call it after its artefacts are on disk."""
        self._done[step] = {"made_from": fingerprint, "configuration": self._configuration}
        self._write()

    def forget(self, step: str) -> None:
        """Let `step` be made again, where something it shows has changed that decides nothing: a measurement."""
        if self._done.pop(step, None) is not None:
            self._write()

    def _write(self) -> None:
        make_folder(self._path.parent)
        write_file(self._path, (json.dumps(self._done, indent=1, sort_keys=True) + "\n").encode())
