"""A progress that remembers what it was told."""

from contextlib import contextmanager

from dalr_stream.progress import Silent


class Notes(Silent):
    def __init__(self):
        self.said = []
        self.started = []

    def note(self, message):
        self.said.append(message)

    @contextmanager
    def track(self, title, total, unit):  # noqa: ARG002  # protocol
        self.started.append(title)
        yield lambda _: None
