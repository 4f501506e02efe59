"""The terminal: results on standard output, progress on standard error as bars, or as plain lines where none can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

from dalr_stream.progress import Advance, Progress

_SECONDS_BETWEEN_LINES = 10.0


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
                self._write(f"{title}: {_amount(done, total)} {unit}, {done / (now - begun):,.0f} {unit}/s")

        yield advance
        self._write(f"{title}: {done:,} {unit} in {time.monotonic() - begun:.1f} s")


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
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self._unit}/s")


def for_console(console: Console) -> Progress:
    """Return bars on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        return Bars(console)
    return Lines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def _amount(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


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


def console_for(*, stderr: bool = False) -> Console:
    """Return the terminal: standard output for results, standard error for what happens on the way."""
    return Console(stderr=stderr)
