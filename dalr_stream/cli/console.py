"""The terminal: results on standard output, progress on standard error as bars, or as plain lines where none can be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.text import Text

from dalr_stream.progress import Advance, Progress, seconds_in_words

_SECONDS_BETWEEN_LINES = 10.0
PIPED_COLUMNS = 500
"""More than any table needs."""
QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether the command that runs was asked to show no progress."""


class Lines:
    """Plain lines: one when a piece of work ends, one now and then while it lasts."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def note(self, message: str) -> None:
        """Write the message as a line."""
        self._write(message)

    @contextmanager
    def track(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Write a line every ten seconds, and one at the end."""
        begun = last = time.monotonic()
        done = 0

        def advance(units: int) -> None:
            nonlocal done, last
            done += units
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                pace = _pace(done, total, now - begun, unit)
                self._write(", ".join([f"{title}: {_amount(done, total, unit)}", *pace]))

        yield advance
        if total != 0:
            self._write(f"{title}: {_amount(done, None, unit)} in {seconds_in_words(time.monotonic() - begun)}")


class Bars:
    """Bars on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, message: str) -> None:
        """Print the message."""
        self._console.print(message, highlight=False, markup=False)

    @contextmanager
    def track(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show a bar with the rate and the time left."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
        with RichBars(*columns, _Rate(unit), TimeRemainingColumn(), console=self._console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda units: bars.advance(task, units)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else rate_in_words(task.speed, self._unit))


class Warnings:
    """Only what warns: what `--quiet` leaves."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def note(self, message: str) -> None:
        """Write the message, if it is a warning."""
        if message.startswith("warning: "):
            self._write(message)

    @contextmanager
    def track(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:  # noqa: ARG002  # protocol
        """Follow nothing."""
        yield lambda _: None


def for_console(console: Console, *, quiet: bool = False) -> Progress:
    """Return bars on a terminal, plain lines elsewhere; warnings alone where it is to be quiet."""
    if quiet:
        return Warnings(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
    if console.is_terminal:
        return Bars(console)
    return Lines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def _amount(done: int, total: int | None, unit: str) -> str:
    of = "" if total is None else f" of {total:,}"
    return f"{done:,}{of} {_singular(unit) if (done if total is None else total) == 1 else unit}"


def _pace(done: int, total: int | None, seconds: float, unit: str) -> Iterator[str]:
    """Yield how fast it goes, and how long the rest will take where its amount is known."""
    if done > 0:
        yield rate_in_words(done / seconds, unit)
        if total is not None and total > done:
            yield f"about {seconds_in_words((total - done) * seconds / done)} left"


def rate_in_words(rate: float, unit: str) -> str:
    """Return a number of units a second: `12 batches/s`; of slow ones the seconds of each: `4.2 s a network`."""
    return f"{rate:,.0f} {unit}/s" if rate >= 1 else f"{seconds_in_words(1 / rate)} a {_singular(unit)}"


def _singular(unit: str) -> str:
    return unit.removesuffix("es") if unit.endswith(("ches", "sses")) else unit.removesuffix("s")


def show_progress() -> Progress:
    """Return progress bars on standard error, or plain lines where it is no terminal.

    Returns
    -------
    Progress
        For the `progress` argument of any verb.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 3)).eval()
    >>> layers = ds.watch(model, ["0"])
    >>> ds.accumulate(model, [torch.randn(32, 6)], layers, progress=ds.show_progress())
    Statistics of 0
    """
    return for_console(console_for(stderr=True))


def command_progress() -> Progress:
    """Return where a verb reports: what `show_progress` gives, warnings alone after `--quiet`."""
    return for_console(console_for(stderr=True), quiet=QUIET.get())


def console_for(*, stderr: bool = False) -> Console:
    """Return the terminal: standard output for results, standard error for what happens on the way.

    Into a file or a pipe a line is as long as it has to be: a name cut at 80 columns is no use to what reads it.
    """
    console = Console(stderr=stderr)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=PIPED_COLUMNS)
