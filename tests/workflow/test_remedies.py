"""What a message says to do is done here, to the letter, and afterwards the run is as if nothing had happened."""

import random
import re
import shutil
import sys

import pytest
from tiny_run_file import write_run

from dalr_stream.errors import StoreError
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.workflow.run import Run

FEW = 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]'
OTHER = "solve.ridge=0.5"
"""Makes the next run read the moments and the weights again."""
LOGS = {"log.jsonl", "run.lock", "steps.json", "store.zarr/writer.lock"}
RECORDS = {
    "weights": "store.zarr/weights/fc1",
    "training moments": "store.zarr/moments/target/fc1/training",
    "held-out moments": "store.zarr/moments/test/fc1/heldout",
    "solution": "store.zarr/solutions/fc2/momasp_node",
    "rows": "store.zarr/activations/target/fc1",
}


DELETED = [path for name, path in RECORDS.items() if name != "rows"]  # which may go, once their moments are there
DELETED += ["store.zarr/manifest.json", "store.zarr/zarr.json", "store.zarr"]


def opened(file, *overrides):
    sys.modules.pop("tiny_run", None)
    return Run.open(file, set=[FEW, *overrides])


def made(folder, contents):
    return {name: data for name, data in contents(folder / "out").items() if name not in LOGS}


@pytest.fixture(scope="module")
def done_folder(tmp_path_factory):
    file = write_run(tmp_path_factory.mktemp("whole") / "tiny")
    opened(file).all()
    return file.parent


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, done_folder):
    """The same run, then under the other setting."""
    folder = shutil.copytree(done_folder, tmp_path_factory.mktemp("other") / "tiny")
    opened(folder / "run.toml", OTHER).all()
    return folder


def damaged(path, kind):
    if kind == "deleted":
        path.unlink()
        return
    data = path.read_bytes()
    place = random.Random(path.name).randrange(len(data))  # noqa: S311
    flipped = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    path.write_bytes(data[: len(data) // 2] if kind == "cut" else flipped)


def follow(message):
    """Do what an error says, of what is done by hand; what is left is to run again."""
    if folder := re.search(r"delete '([^']+)'", message):
        shutil.rmtree(folder[1])
    elif "delete the record's folder" in message or "delete it and begin again" in message:
        shutil.rmtree(re.match(r"'([^']+)'", message)[1])
    else:
        pytest.fail(f"says nothing to do by hand: {message}")


def run_as_told(file):
    """Run, do what an error says, and run again."""
    for _ in range(2):
        try:
            opened(file, OTHER).all()
        except StoreError as error:
            follow(str(error))
        else:
            return
    opened(file, OTHER).all()


@pytest.mark.parametrize("kind", ["deleted", "cut", "flipped"])
@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.usefixtures("unsynced")
def test_a_damaged_record_of_the_store(done_folder, other_folder, tmp_path, record, kind, contents, soak):
    expected = made(other_folder, contents)
    folder = done_folder / "out" / RECORDS[record]
    files = sorted(path.relative_to(done_folder) for path in folder.rglob("*") if path.is_file())
    for number, file in enumerate(files if soak else [random.Random(record + kind).choice(files)]):  # noqa: S311
        copy = shutil.copytree(done_folder, tmp_path / str(number))
        damaged(copy / file, kind)
        if record == "rows":  # which are read where moments are to be made again
            shutil.rmtree(copy / "out/store.zarr/moments/target/fc1")
        run_as_told(copy / "run.toml")
        assert made(copy, contents) == expected, file


@pytest.mark.parametrize("name", DELETED)
@pytest.mark.usefixtures("unsynced")
def test_what_was_deleted_from_the_store_is_made_again(done_folder, other_folder, tmp_path, name, contents):
    copy = shutil.copytree(done_folder, tmp_path / "copy")
    path = copy / "out" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_as_told(copy / "run.toml")
    left, expected = made(copy, contents), made(other_folder, contents)
    assert {name for name in {*left, *expected} if left.get(name) != expected.get(name)} == set()


@pytest.mark.usefixtures("unsynced")
def test_a_damaged_manifest(done_folder, other_folder, tmp_path, contents):
    copy = shutil.copytree(done_folder, tmp_path / "copy")
    damaged(copy / "out/store.zarr/manifest.json", "cut")
    with pytest.raises(StoreError, match=r"manifest\.json' is damaged: .*; delete '.*store\.zarr' and capture again"):
        opened(copy / "run.toml", OTHER).all()
    run_as_told(copy / "run.toml")
    left, expected = made(copy, contents), made(other_folder, contents)
    assert {name for name in {*left, *expected} if left.get(name) != expected.get(name)} == set()


def without(name):
    def remove(run):
        path = run.project.output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def cut(name):
    def shorten(run):
        path = run.project.output / name
        path.write_bytes(path.read_bytes()[:-9])

    return shorten


def held_out_of_other_rows(run):
    path = moments_path(run.project.store, "test", "fc1", "heldout")
    save_moments(path, load_moments(path), {**provenance_of(path), "rows": "others"})


def results_of(run):
    return run.results


NAMED = [
    (without("store.zarr/moments/target/fc1"), Run.solve, "run accumulate first", Run.accumulate),
    (without("network.safetensors"), Run.compress, "run train first", Run.train),
    (without("compressed"), Run.profile, "run compress first", Run.compress),
    (cut("evaluation.json"), results_of, "run evaluate again, which replaces it", Run.evaluate),
    (held_out_of_other_rows, Run.report, "accumulate again", Run.accumulate),
]


@pytest.mark.parametrize(("harm", "verb", "message", "remedy"), NAMED, ids=[message for _, _, message, _ in NAMED])
@pytest.mark.usefixtures("unsynced")
def test_the_command_that_a_message_names_mends_it(other_folder, tmp_path, harm, verb, message, remedy):
    copy = shutil.copytree(other_folder, tmp_path / "copy")
    again = OTHER if verb is results_of else "solve.ridge=0.25"
    harm(opened(copy / "run.toml", OTHER))
    with pytest.raises(StoreError, match=message):
        verb(opened(copy / "run.toml", again))
    remedy(opened(copy / "run.toml", again))
    verb(opened(copy / "run.toml", again))
