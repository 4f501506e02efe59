"""Progress as an argument: what a long piece of work reports while it lasts. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Says what is going on."""

    def note(self, message: str) -> None:
        """Say one thing."""

    def track(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """Follow a piece of work; the block is given a function to call with each number of units done."""


class Silent:
    """Says nothing."""

    def note(self, message: str) -> None:
        """Drop the message."""

    @contextmanager
    def track(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:  # noqa: ARG002  # protocol
        """Follow nothing."""
        yield lambda _: None


def seconds_in_words(seconds: float) -> str:
    """Return a time as one would say it: 0.05 s, 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds:.2g} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
