"""Only what this package makes, where it makes it, is ever removed; nothing is written or removed through a link."""

import os
import shutil

import pytest
from stores import Killed, batches_of, capture, files_of, network, rows_for

from dalr_stream.engine.stores.merge import merge
from dalr_stream.errors import DalrStreamError, StoreError
from dalr_stream.storage.layout import sweep
from dalr_stream.storage.lock import locked
from dalr_stream.storage.removal import delete_activations, forget_domain, forget_moments, forget_store

pytestmark = pytest.mark.usefixtures("quick_stores")
HEX = "0123abcd"
LITTER = {
    f".tmp-new-manifest.json-{HEX}": "half a manifest",
    f".tmp-new-zarr.json-{HEX}": "half a group",
    f".tmp-new-activations-{HEX}/target/fc/c/0": "on its way out",
    f"activations/.tmp-new-target-{HEX}/fc/c/0": "on its way out",
    f"activations/target/fc/.tmp-new-zarr.json-{HEX}": "half an array's head",
    "activations/target/fc/zarr.0123456789abcdef0123456789abcdef.partial": "zarr's own",
    f"moments/target/fc/.tmp-new-training-{HEX}/mean": "half a record",
    f"moments/target/fc/.tmp-old-training-{HEX}/mean": "on its way out",
    f"weights/.tmp-new-fc-{HEX}/weight": "half a record",
    f"solutions/fc/.tmp-new-dalr-{HEX}/basis": "half a record",
    f"shards/target/0011/fc/.tmp-new-heldout-{HEX}/mean": "half a record",
    f"unfinished/target/fc/.tmp-new-lane-0-{HEX}/state": "half a state",
}
OF_THE_USER = {
    ".tmp-notes/ideas.txt": "mine",
    ".tmp-new-notes-0123abcd/ideas.txt": "mine, by whatever name",
    ".tmp-old-photos-0123abcd/a.jpg": "mine",
    "thesis.final.partial": "mine",
    "zarr.0123456789abcdef0123456789abcdef.partial": "no zarr writes here",
    "download.0123.partial": "mine",
    "notes/.tmp-new-training-0123abcd/a": "in a folder of mine",
    "activations/target/fc/.DS_Store": "a file manager's",
    "activations/target/fc/c/.DS_Store": "a file manager's",
    "moments/.tmp-mine": "mine",
    "moments/target/fc/.tmp-new-training-XYZ": "mine",
    "moments/target/fc/training/.tmp-new-mean-0123abcd": "no writer works inside a record",
}
CAPTURED = "activations/target/fc6"


def lay(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def tree(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "writer.lock")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def captured(root):
    capture(root, batches_of(rows_for(100), [10]))
    return root


def test_litter_is_swept_wherever_writers_leave_it_and_nothing_else_is(tmp_path):
    lay(tmp_path, {"manifest.json": "one", "moments/target/fc/training/mean": "whole", **LITTER, **OF_THE_USER})
    sweep(tmp_path)
    left = {name: text.decode() for name, text in tree(tmp_path).items()}
    assert left == {"manifest.json": "one", "moments/target/fc/training/mean": "whole", **OF_THE_USER}


@pytest.mark.parametrize("name", LITTER)
def test_each_piece_of_litter_is_swept_from_a_real_store(tmp_path, name):
    before = tree(captured(tmp_path))
    lay(tmp_path, {name.replace("/fc/", "/fc6/"): "half"})
    if "old-training" in name:
        lay(tmp_path, {"moments/target/fc6/training/mean": "whole"})
        before = {**before, "moments/target/fc6/training/mean": b"whole"}
    with locked(tmp_path):
        assert tree(tmp_path) == before


def test_a_replacement_killed_between_its_renames_leaves_the_old_record(tmp_path):
    folder = tmp_path / "weights"
    for name in ("tmp-old-fc6-12", "tmp-new-fc6-12", "tmp-old-fc7-12"):
        lay(folder, {f".{name.replace('12', HEX)}/from": name})
    lay(folder, {"fc7/from": "fc7"})
    sweep(tmp_path)
    assert tree(folder) == {"fc6/from": b"tmp-old-fc6-12", "fc7/from": b"fc7"}


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


WRITERS = {
    "capture": captured,
    "merge": lambda root: merge([root.parent / "source"], root),
    "forget a store": forget_store,
    "delete activations": delete_activations,
    "lock": lambda root: locked(root).__enter__(),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    "files",
    [
        OF_THE_USER,
        LITTER,
        {"notes.txt": "mine"},
        {".tmp-notes/a/b/c.txt": "mine"},
        {".tmp-new-report-0123abcd": "mine"},
        {"activations/target/photo.jpg": "mine"},
        {"store.zarr/manifest.json": "a level deeper"},
    ],
)
def test_a_folder_of_other_things_is_refused_and_no_byte_of_it_changes(tmp_path, write, files):
    captured(tmp_path / "source")
    root = tmp_path / "home"
    lay(root, files)
    before = tree(root)
    with pytest.raises(DalrStreamError) as caught:
        write(root)
    assert tree(root) == before
    assert not (root / "writer.lock").exists()
    assert "is not a store" in str(caught.value) or "has no domain" in str(caught.value)


@pytest.mark.parametrize("forget", [forget_domain, forget_moments])
def test_forgetting_in_a_folder_of_other_things_does_nothing(tmp_path, forget):
    lay(tmp_path, {"activations/target/mine": "mine", "moments/target/mine": "mine"})
    before = tree(tmp_path)
    forget(tmp_path, "target")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".DS_Store": "a file manager's"},
        {"lost+found/.keep": ""},
        {"writer.lock": ""},
        {"writer.lock": "", ".tmp-new-manifest.json-0123abcd": "half"},
        {"writer.lock": "", "zarr.json": "killed before its manifest"},
    ],
)
def test_a_store_is_made_in_an_empty_folder_and_where_the_making_of_one_was_killed(tmp_path, files):
    lay(tmp_path / "root", files)
    captured(tmp_path / "root")
    expected = tree(captured(tmp_path / "fresh"))
    left = {name: data for name, data in tree(tmp_path / "root").items() if name in expected}
    assert left == expected


def test_what_the_user_keeps_in_a_store_outlives_its_capture_its_resuming_and_its_end(tmp_path):
    root = captured(tmp_path)
    mine = {name.replace("/fc/", "/fc6/"): text.encode() for name, text in OF_THE_USER.items()}
    lay(root, {name: text.decode() for name, text in mine.items()})
    capture(root, batches_of(rows_for(100), [10]))
    assert {name: tree(root).get(name) for name in mine} == mine
    capture(root, batches_of(rows_for(50), [10]), domain="source")
    assert {name: tree(root).get(name) for name in mine} == mine
    forget_store(root)
    outside = {name: data for name, data in mine.items() if not name.startswith(("activations", "moments"))}
    assert {name: tree(root).get(name) for name in outside} == outside


def test_a_file_managers_file_among_the_chunks_outlives_a_resumed_capture(tmp_path):
    batches = list(batches_of(rows_for(3000), [100]))
    with pytest.raises(Killed):
        capture(tmp_path, batches, stop_after=25)
    lay(tmp_path, {f"{CAPTURED}/c/.DS_Store": "mine"})
    capture(tmp_path, batches)
    capture(tmp_path / "whole", batches)
    whole = files_of(tmp_path / "whole")
    assert {name: data for name, data in files_of(tmp_path).items() if name in whole} == whole
    assert (tmp_path / CAPTURED / "c/.DS_Store").read_text() == "mine"


LINKS = [
    "manifest.json",
    "writer.lock",
    "zarr.json",
    "activations",
    "moments",
    "weights",
    "solutions",
    "shards",
    "unfinished",
    "activations/target",
    "activations/target/fc6",
    "activations/target/fc6/c",
    "activations/target/fc6/zarr.json",
    "moments/target",
    "moments/target/fc6",
    "moments/target/fc6/training",
    "weights/fc6",
    "shards/target/0011/fc6",
    "solutions/fc6/dalr",
    "unfinished/target/fc6/lane-0",
    f"weights/.tmp-old-fc6-{HEX}",
    f".tmp-new-activations-{HEX}",
]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("broken", [False, True], ids=["to a folder", "to nothing"])
def test_a_link_in_a_stores_place_is_refused_and_what_it_leads_to_stays(tmp_path, name, broken):
    root, outside = captured(tmp_path / "root"), tmp_path / "outside"
    place = root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        shutil.move(place, outside)
    elif place.exists():
        outside.mkdir()
        shutil.move(place, outside / "file")
    else:
        lay(outside, {"mine/.tmp-new-training-0123abcd/a": "mine"})
    is_file = (outside / "file").exists()
    place.symlink_to(tmp_path / "nowhere" if broken else outside / "file" if is_file else outside)
    before = tree(outside)
    writers = (
        lambda: captured(root),
        lambda: capture(root, batches_of(rows_for(50), [10]), domain="source"),
        lambda: forget_store(root),
        lambda: delete_activations(root),
        lambda: forget_domain(root, "target"),
    )
    for write in writers:
        if name == "manifest.json" and broken and write is writers[-1]:
            continue  # no manifest: nothing to forget
        with pytest.raises(StoreError, match=r"is a link, and a store holds none|is not a store"):
            write()
        assert tree(outside) == before
        assert place.is_symlink()
        assert not (tmp_path / "nowhere").exists()


def test_a_link_among_the_chunks_is_refused_on_resuming(tmp_path):
    batches = list(batches_of(rows_for(3000), [100]))
    with pytest.raises(Killed):
        capture(tmp_path / "root", batches, stop_after=25)
    chunks = tmp_path / "root" / CAPTURED / "c"
    beyond = max(int(path.name) for path in chunks.iterdir()) + 1
    lay(tmp_path / "outside", {"0": "mine"})
    (chunks / str(beyond)).symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=f"{beyond}' is a link, and a store holds none"):
        capture(tmp_path / "root", batches)
    assert tree(tmp_path / "outside") == {"0": b"mine"}


def test_a_store_may_itself_be_reached_through_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    captured(tmp_path / "root")
    assert files_of(tmp_path / "disk") == files_of(captured(tmp_path / "plain"))


def test_a_capture_of_another_network_changes_no_byte(tmp_path):
    before = tree(captured(tmp_path))
    (tmp_path / "zarr.json").write_text("changed")
    with pytest.raises(DalrStreamError, match="fingerprint"):
        capture(tmp_path, batches_of(rows_for(50), [10]), net=network("b" * 64))
    assert tree(tmp_path) == {**before, "zarr.json": b"changed"}


def test_folders_in_which_there_are_no_checkpoints_any_more_go(tmp_path):
    captured(tmp_path)
    (tmp_path / "unfinished/target").mkdir(parents=True)
    lay(tmp_path, {"unfinished/source/fc6/lane-0/zarr.json": "a checkpoint"})
    with locked(tmp_path):
        pass
    assert not (tmp_path / "unfinished/target").exists()
    assert (tmp_path / "unfinished/source/fc6/lane-0").is_dir()
