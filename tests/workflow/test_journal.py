"""The log of a run: a JSON object a line, whatever the terminal shows."""

import errno
import json
from pathlib import Path

import pytest

from dalr_stream.cli.console import Lines
from dalr_stream.errors import DiskSpaceError
from dalr_stream.workflow.journal import Journal


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_is_a_line_and_reaches_the_terminal(tmp_path):
    said, path = [], tmp_path / "run" / "log.jsonl"
    journal = Journal(Lines(said.append), path)
    assert not path.parent.exists()
    journal.note("hello")
    with journal.track("solve", 5, "solutions") as advance:
        advance(2)
        advance(3)
    note, began, ended = written(path)
    assert (note["event"], note["message"]) == ("note", "hello")
    assert (began["event"], began["what"], began["total"], began["unit"]) == ("began", "solve", 5, "solutions")
    assert (ended["event"], ended["units"]) == ("ended", 5)
    assert ended["seconds"] >= 0
    assert note["time"] <= began["time"] <= ended["time"]
    assert said[0] == "hello"
    assert said[1].startswith("solve: 5 solutions")


def test_what_fails_is_written_with_how_far_it_came_and_raised(tmp_path):
    journal = Journal(Lines(lambda _: None), tmp_path / "log.jsonl")

    def work():
        with journal.track("fold", None, "rows") as advance:
            advance(7)
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        work()
    failed = written(tmp_path / "log.jsonl")[-1]
    assert (failed["event"], failed["units"], failed["error"]) == ("failed", 7, "RuntimeError: no more")


def test_a_second_run_appends(tmp_path):
    for message in ("one", "two"):
        Journal(Lines(lambda _: None), tmp_path / "log.jsonl").note(message)
    assert [line["message"] for line in written(tmp_path / "log.jsonl")] == ["one", "two"]


def test_a_full_disk_is_named_and_hides_no_other_error(tmp_path, monkeypatch):
    journal = Journal(Lines(lambda _: None), tmp_path / "log.jsonl")

    def fail():
        with journal.track("fold", None, "rows"):
            monkeypatch.setattr(Path, "open", full)
            raise RuntimeError("no more")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    with pytest.raises(DiskSpaceError, match=r"log\.jsonl.*the disk is full"):
        journal.note("hello")
