"""Which steps were done, and from what: one small file beside the artefacts.

Before a step is done its entry leaves the log, on disk: a step that was killed between two of its files is never taken
for what it was before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.storage.json_record import RecordKind, read_record, write_record

FILE = "steps.json"
LOG = RecordKind("steps", 1, "run the same command")


class StepLog:
    """What each step was last made from, in one small file beside the artefacts, with the configuration it was made by.

    A file that is damaged counts as empty: every step is stale then.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self._configuration = dict(configuration)
        self._done: dict[str, dict[str, Any]] = {}
        self.damage = ""
        """What is wrong with the file that was there, in words."""
        try:
            self._done = read_record(self._path, LOG)
        except StoreNotFoundError:
            return
        except (StoreDamagedError, FingerprintMismatchError) as error:
            self._done = _of_0_1(self._path)
            self.damage = "" if self._done else str(error)

    def made_from(self, step: str) -> str | None:
        """Return what a step was last made from; None where it was not, or is being made."""
        return self._done.get(step, {}).get("made_from")

    def begin(self, step: str) -> None:
        """Forget what a step was made from, on disk, before the first byte of what it left changes."""
        self._done[step] = {"unfinished": True, "configuration": self._configuration}
        self._write()

    def unfinished(self, step: str) -> bool:
        """Tell whether a step was begun and stopped midway: what it left is neither of before nor of now."""
        return "unfinished" in self._done.get(step, {})

    def done(self, step: str, fingerprint: str) -> None:
        """Record that a step was made; call it after its artefacts are on disk."""
        self._done[step] = {"made_from": fingerprint, "configuration": self._configuration}
        self._write()

    def _write(self) -> None:
        write_record(self._path, LOG, dict(sorted(self._done.items())))


def _of_0_1(path: Path) -> dict[str, dict[str, Any]]:
    """Return what version 0.1 wrote, so that no network is trained again for the sake of a version; else nothing."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"made_from": step["made_from"], **step} for name, step in plain.items()}
    except (ValueError, AttributeError, LookupError, TypeError):
        return {}
