"""Ends a run in the middle, where the test says, and keeps what it told until then."""

from contextlib import contextmanager

from dalr_stream.cli.console import Lines


class StoppedError(Exception):
    """Stands for the end of the process."""


class StopAfter(Lines):
    """Ends the run after so many reports of progress; keeps what was noted, begun and reported."""

    def __init__(self, reports):
        super().__init__(lambda _: None)
        self.left = reports
        self.said = []
        self.titles = []
        self.units = []

    def note(self, message):
        self.said.append(message)

    @contextmanager
    def track(self, title, total, unit):  # noqa: ARG002
        self.titles.append(title)
        yield self.advanced

    def advanced(self, units):
        self.units.append(units)
        self.left -= 1
        if self.left == 0:
            raise StoppedError
