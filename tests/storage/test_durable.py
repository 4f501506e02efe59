"""The old state or the new one, and nothing in between."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from stores import Killed

from dalr_stream.errors import DiskSpaceError
from dalr_stream.storage.durable import INCOMING, OUTGOING, new_folder, remove_folder, write_file


def tree(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_replaced_whole(tmp_path):
    write_file(tmp_path / "a", b"old")
    write_file(tmp_path / "a", b"new")
    assert tree(tmp_path) == {"a": "new"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_could_not_be_replaced_is_the_old_one(tmp_path, monkeypatch, call):
    write_file(tmp_path / "a", b"old")

    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(DiskSpaceError, match=r"No space left.*run the same command again"):
        write_file(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert tree(tmp_path) == {"a": "old"}


def test_a_folder_is_replaced_whole_and_keeps_nothing_of_the_old_one(tmp_path):
    for number in (1, 2):
        with new_folder(tmp_path / "deep" / "record") as folder:
            (folder / f"only-{number}").write_text(str(number))
            (folder / "inner").mkdir()
            (folder / "inner" / "both").write_text(str(number))
            assert (tmp_path / "deep/record").exists() == (number == 2)
    assert tree(tmp_path) == {"deep/record/only-2": "2", "deep/record/inner/both": "2"}


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_folder_that_could_not_be_filled_is_the_old_one(tmp_path, error):
    with new_folder(tmp_path / "record") as folder:
        (folder / "a").write_text("old")
    with suppress(error), new_folder(tmp_path / "record") as folder:
        (folder / "a").write_text("new")
        raise error
    assert tree(tmp_path) == {"record/a": "old"}


@pytest.mark.parametrize("mark", [INCOMING, OUTGOING])
def test_litter_of_a_killed_process_of_the_same_number_is_in_nobodys_way(tmp_path, mark):
    """Process numbers come again, in containers mostly, and outside a store nobody sweeps."""
    path, litter = tmp_path / "record", tmp_path / f"{mark}record-{os.getpid()}"

    def replace(text):
        with new_folder(path) as folder:
            (folder / "a").write_text(text)

    for write in (lambda: replace("new"), lambda: remove_folder(path)):
        replace("old")
        litter.mkdir(exist_ok=True)
        (litter / "a").write_text("half")
        write()
        assert tree(tmp_path).get("record/a") in {"new", None}


def test_a_replacement_interrupted_between_its_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    with new_folder(tmp_path / "record") as folder:
        (folder / "a").write_text("old")
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    with suppress(KeyboardInterrupt), new_folder(tmp_path / "record") as folder:
        (folder / "a").write_text("new")
        monkeypatch.setattr(Path, "rename", interrupted)
    assert len(calls) == 3
    assert tree(tmp_path) == {"record/a": "old"}
