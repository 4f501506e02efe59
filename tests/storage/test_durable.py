"""The old state or the new one, and nothing in between."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from stores import Killed

from dalr_stream.errors import DiskSpaceError
from dalr_stream.storage.durable import INCOMING, OUTGOING, new_folder, remove_folder, sweep, write_file


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
    sweep(tmp_path)
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


def test_litter_is_swept_at_every_depth_and_nothing_else(tmp_path):
    (tmp_path / "moments" / ".tmp-training-7" / "mean").mkdir(parents=True)
    (tmp_path / "activations" / "c" / "0").mkdir(parents=True)
    (tmp_path / "activations" / "c" / "0" / "0.5f5f.partial").write_text("half")
    (tmp_path / "activations" / "zarr.json").write_text("kept")
    (tmp_path / "activations" / "fc.partial").mkdir()
    (tmp_path / "activations" / "fc.partial" / "zarr.json").write_text("a layer's own name")
    (tmp_path / ".tmp-manifest.json-7").write_text("half")
    sweep(tmp_path)
    assert tree(tmp_path) == {"activations/zarr.json": "kept", "activations/fc.partial/zarr.json": "a layer's own name"}


def test_a_replacement_killed_between_its_renames_leaves_the_old_record(tmp_path):
    for name in (".tmp-old-fc6-12", ".tmp-fc6-12", ".tmp-old-fc7-12", "fc7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "from").write_text(name)
    sweep(tmp_path)
    assert {path.name: (path / "from").read_text() for path in tmp_path.iterdir()} == {
        "fc6": ".tmp-old-fc6-12",
        "fc7": "fc7",
    }


def test_a_sweep_does_not_look_at_the_chunks(tmp_path):
    """Each lock sweeps: its cost must not grow with the rows."""

    def folders_listed(tiles):
        array = tmp_path / str(tiles) / "activations" / "target" / "fc6"
        for tile in range(tiles):
            (array / "c" / str(tile)).mkdir(parents=True)
        listed = []
        with pytest.MonkeyPatch.context() as patch:
            for name in ("scandir", "listdir"):
                real = getattr(os, name)
                patch.setattr(os, name, lambda path=".", real=real: [listed.append(path), real(path)][1])
            sweep(tmp_path / str(tiles))
        return len(listed)

    assert folders_listed(2) == folders_listed(300) > 3
