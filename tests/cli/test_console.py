"""What a command says while it works: in units that mean something, and little where it is asked to be quiet."""

import pytest
from rich.console import Console

from dalr_stream.cli import console
from dalr_stream.cli.console import Lines, Warnings, for_console, rate_in_words
from dalr_stream.progress import seconds_in_words


@pytest.mark.parametrize(
    ("rate", "unit", "words"),
    [
        (12.4, "batches", "12 batches/s"),
        (51_234.0, "rows", "51,234 rows/s"),
        (1.0, "networks", "1 networks/s"),
        (0.25, "networks", "4.0 s a network"),
        (0.005, "batches", "3 min 20 s a batch"),
        (0.1, "passes", "10.0 s a pass"),
    ],
)
def test_a_slow_rate_is_the_time_that_one_takes(rate, unit, words):
    assert rate_in_words(rate, unit) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.012, "0.012 s"), (4.21, "4.2 s"), (59.96, "1 min 0 s"), (200, "3 min 20 s"), (7500.4, "2 h 5 min")],
)
def test_times_read_as_one_would_say_them(seconds, words):
    assert seconds_in_words(seconds) == words


def test_lines_say_how_long_each_takes_and_what_is_left(monkeypatch):
    clock = iter([0.0, 30.0, 31.0, 60.0, 60.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    said = []
    with Lines(said.append).track("evaluate", 6, "networks") as advance:
        for _ in range(3):
            advance(1)
    assert said == [
        "evaluate: 1 of 6 networks, 30.0 s a network, about 2 min 30 s left",
        "evaluate: 3 of 6 networks, 20.0 s a network, about 1 min 0 s left",
        "evaluate: 3 networks in 1 min 0 s",
    ]


def test_quiet_leaves_warnings_alone(capsys):
    quiet = for_console(Console(stderr=True), quiet=True)
    assert isinstance(quiet, Warnings)
    quiet.note("solve: up to date, skipped")
    quiet.note("warning: layer 'fc1': few samples")
    with quiet.track("solve", 2, "solutions") as advance:
        advance(2)
    assert capsys.readouterr().err == "warning: layer 'fc1': few samples\n"


def test_one_is_no_plural_and_nothing_is_no_line():
    said = []
    with Lines(said.append).track("solve", 1, "solutions") as advance:
        advance(1)
    with Lines(said.append).track("evaluate", 0, "networks"):
        pass
    assert [line.partition(" in ")[0] for line in said] == ["solve: 1 solution"]
