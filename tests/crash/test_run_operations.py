"""Every operation on a run's own files, in turn: the machine stops there, the disk is full, broken or not ours.

A step is done on top of a finished run, under another setting. Whatever a crash at an operation may leave on the disk,
the same command afterwards ends in the same files, and nothing else lies there; where the operation fails, the command
says so in one line, and goes on to the same files once the disk is well again. The store has the same proof of its own
(`tests/storage`), so the operations are those outside of it.
"""

import dataclasses
import errno
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
from crashing_disk import Disk, failing_from, failing_once, images, lay_down
from tiny_run_file import write_run

from dalr_stream.errors import DalrStreamError, DiskSpaceError, StoreError
from dalr_stream.storage.lock import locked
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.verify import verify_run

SMALL = [
    'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]',
    'finetune={batches="tiny_run:validation", epochs=2}',
    "evaluate.ranks=[1, 4]",
    "network.train_options.steps=5",
]
STEPS = {
    "train": ("train", "run.seed=5"),
    "solve": ("solve", "solve.ridge=0.5"),
    "compress": ("compress", "compress.fc1.size=2"),
    "compress in order": ("compress", 'compress.order="sequential"'),
    "finetune": ("finetune", "finetune.epochs=3"),
    "evaluate": ("evaluate", "evaluate.finetune=true"),
    "report": ("report", "evaluate.finetune=true"),
}
STORES = ("store.zarr", "passes/")
LOGS = {"log.jsonl", "run.lock", "writer.lock"}
SAMPLE = 4
"""Of the images, and of the failures, of a step; `make soak` has them all."""


def opened(folder, setting):
    sys.modules.pop("tiny_run", None)
    return Run.open(folder / "run.toml", set=[*SMALL, setting])


def left(folder):
    """Return every file and folder of the run, by its path, less its log and its locks.

    What a killed writer left in a store that nobody had to write to since is cleared first, as the next writer does.
    """
    out = folder / "out"
    for root in opened(folder, "run.seed=0").project.stores:
        with locked(root):
            pass
    paths = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.name not in LOGS}
    return {name: path.is_file() and path.read_bytes() for name, path in paths.items()}


def is_own(operation):
    return not operation.path.startswith(STORES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick):  # noqa: ARG001  # it is quick before it begins
    file = write_run(tmp_path_factory.mktemp("whole") / "tiny")
    opened(file.parent, "run.seed=0").all()
    return file.parent


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A step done once, on a disk that took notes."""

    before: Path
    verb: str
    setting: str
    journal: list = dataclasses.field(default_factory=list)
    files: dict = dataclasses.field(default_factory=dict)

    def act(self, folder):
        getattr(opened(folder, self.setting), self.verb)()


@pytest.fixture(scope="module", params=STEPS)
def recorded(request, finished, tmp_path_factory):
    verb, setting = STEPS[request.param]
    before = shutil.copytree(finished, tmp_path_factory.mktemp("before") / "tiny")
    if verb == "report":
        opened(before, setting).evaluate()
    after = shutil.copytree(before, before.parent / "after")
    recorded = Recorded(before, verb, setting)
    with Disk(after / "out").recording() as disk:
        recorded.act(after)
    return dataclasses.replace(recorded, journal=disk.journal, files=left(after))


@pytest.mark.usefixtures("unsynced")
def test_every_crash_leaves_what_the_same_command_makes_whole(recorded, tmp_path, soak):
    operations, seen, cases = recorded.journal, set(), []
    for done, kind, image in images(recorded.before / "out", operations):
        what = hash(frozenset((path, data) for path, data in image.items() if path not in LOGS))
        if what not in seen and (done == 0 or is_own(operations[done - 1])):
            seen.add(what)
            cases.append((f"after {done} of {len(operations)} operations, {kind}: {operations[done - 1]}"[:400], image))
    for where, image in cases if soak else random.Random(0).sample(cases, SAMPLE):  # noqa: S311
        folder = laid_down(recorded, image, tmp_path / "crashed")
        try:
            verify_run(opened(folder, recorded.setting).project)
            recorded.act(folder)
            assert differences(left(folder), recorded.files) == []
        except BaseException as error:
            error.add_note(where)
            raise
        shutil.rmtree(folder)
    assert len(cases) > 20


@pytest.mark.usefixtures("unsynced")
def test_no_power_cut_brings_back_what_a_step_that_ended_had_cleared_away(recorded):
    """Nobody would clear it again: the next command skips the step."""
    ended = len(recorded.journal)
    for done, kind, image in images(recorded.before / "out", recorded.journal):
        if done == ended:
            own = {name for name in image if not name.startswith(STORES) and Path(name).name not in LOGS}
            assert own <= recorded.files.keys(), kind


def laid_down(recorded, image, folder):
    shutil.copytree(recorded.before, folder, ignore=shutil.ignore_patterns("out"))
    lay_down(image, folder / "out")
    return folder


FAILURES = {
    "disk full": (errno.ENOSPC, failing_from),
    "input/output error": (errno.EIO, failing_from),
    "input/output error, once": (errno.EIO, failing_once),
    "no rights": (errno.EACCES, failing_from),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.usefixtures("unsynced")
def test_every_failure_is_one_line_and_the_same_command_goes_on(recorded, tmp_path, failure, soak):
    code, failing = FAILURES[failure]
    numbers = [number for number, operation in enumerate(recorded.journal) if is_own(operation)]
    for number in numbers if soak else random.Random(failure).sample(numbers, SAMPLE):  # noqa: S311
        folder = shutil.copytree(recorded.before, tmp_path / "failing")
        try:
            with Disk(folder / "out", failing(number, code)).recording():
                said = refusal(recorded, folder)
            if said is not None:
                assert type(said) is (DiskSpaceError if code == errno.ENOSPC else StoreError)
                assert "\n" not in str(said)
                assert os.strerror(code) in str(said)
                assert str(folder / "out") in str(said)
                assert "run the same command again" in str(said)
            recorded.act(folder)
            assert differences(left(folder), recorded.files) == []
        except BaseException as error:
            error.add_note(f"operation {number} of {len(recorded.journal)}: {recorded.journal[number]}"[:400])
            raise
        shutil.rmtree(folder)


def refusal(recorded, folder):
    try:
        recorded.act(folder)
    except DalrStreamError as error:
        return error
    return None


def differences(found, expected):
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
