"""A log for machines: one JSON object per line, beside what the run made. Progress goes through it to the terminal.

    {"time": "2026-01-31T12:00:00.000+00:00", "event": "began", "what": "solve", "total": 84, "unit": "solutions"}

Events: `note` (message), `began` (what, total, unit), `ended` and `failed` (what, units, seconds; the error).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dalr_stream.errors import DalrStreamError
from dalr_stream.progress import Advance, Progress
from dalr_stream.storage.durable import explained, make_folder

FILE = "log.jsonl"


class Journal:
    """A Progress that writes down what it hears and passes it on. Lines are appended, so runs follow one another."""

    def __init__(self, passed_to: Progress, path: Path) -> None:
        """Pass on to `passed_to`; the file is made when there is something to write."""
        self._passed_to = passed_to
        self._path = path

    def note(self, message: str) -> None:
        """Write down one message."""
        self._write("note", message=message)
        self._passed_to.note(message)

    @contextmanager
    def track(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Write down when a piece of work begins, and how it ends."""
        done, begun = 0, time.monotonic()
        self._write("began", what=title, total=total, unit=unit)

        def facts() -> dict[str, Any]:
            return {"what": title, "units": done, "unit": unit, "seconds": round(time.monotonic() - begun, 3)}

        with self._passed_to.track(title, total, unit) as advance:

            def counted(units: int) -> None:
                nonlocal done
                done += units
                advance(units)

            try:
                yield counted
            except BaseException as error:
                with suppress(DalrStreamError):  # a full disk may be what failed: that is to be shown
                    self._write("failed", **facts(), error=f"{type(error).__name__}: {error}")
                raise
        self._write("ended", **facts())

    def _write(self, event: str, **facts: Any) -> None:
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        make_folder(self._path.parent)
        with explained(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
