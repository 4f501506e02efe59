"""After a crash at any operation, and with the worst a disk may then hold, a reader sees a committed state and the same
command ends in the same files."""

import random
import shutil

import pytest
from crashing_disk import Disk, Model, images, lay_down
from scenarios import SCENARIOS, Truth
from stores import files_of

from dalr_stream.storage.durable import TEMPORARY
from dalr_stream.storage.lock import locked

ONE_IN = 30
"""Images that differ only in litter hold the same store: of those, one in so many is resumed, but in `make soak`."""


pytestmark = pytest.mark.usefixtures("quick_stores")


class Recorded:
    """A scenario done once, without a crash, on a disk that took notes."""

    def __init__(self, scenario, folder):
        self.scenario, self.before, self.after = scenario, folder / "before", folder / "after"
        scenario.prepare(self.before)
        if self.before.exists():
            shutil.copytree(self.before, self.after)
        disk = Disk(self.after)
        with disk.recording():
            scenario.act(self.after)
        self.journal, self.files = disk.journal, files_of(self.after)
        self.truth = Truth(self.before, self.after)


@pytest.fixture(params=SCENARIOS, scope="module")
def recorded(request, tmp_path_factory, quick_stores):  # noqa: ARG001  # stores are quick before they are made
    return Recorded(SCENARIOS[request.param], tmp_path_factory.mktemp("recorded"))


def test_the_journal_misses_nothing(recorded):
    """Replayed, it gives the folder that is really there: whatever zarr and pathlib call was seen."""
    model = Model(recorded.before)
    for operation in recorded.journal:
        model.apply(operation)
    there = model.image(lambda _, folder: folder.names, lambda _, file: file.data)
    assert {path: data for path, data in there.items() if data is not None} == recorded.files
    assert len(recorded.journal) >= 30


def test_what_is_done_is_safe(recorded):
    """When a call has returned, a power cut takes nothing of it: at most, litter is still there."""
    model = Model(recorded.before)
    for operation in recorded.journal:
        model.apply(operation)
    safe = model.image(lambda _, folder: folder.safe, lambda _, file: file.safe)
    assert {path: data for path, data in _store(safe) if data is not None} == recorded.files


def test_every_crash_leaves_a_committed_state_and_the_same_command_ends_in_the_same_files(recorded, tmp_path, soak):
    draw, resumed, seen = random.Random(1), 0, set()  # noqa: S311  # choices, not secrets
    for done, kind, image in images(recorded.before, recorded.journal):
        store = hash(_store(image))
        if store in seen and not soak and draw.random() > 1 / ONE_IN:
            continue
        seen.add(store)
        root = tmp_path / "image"
        lay_down(image, root)
        where = f"after {done} of {len(recorded.journal)} operations, {kind}: {recorded.journal[done - 1]}"[:400]
        try:
            recorded.truth.assert_held_by(root)
            recorded.scenario.act(root)
            with locked(root):  # where nothing was left to do, the litter goes with the next writer
                assert files_of(root) == recorded.files
        except BaseException as error:
            error.add_note(where)
            raise
        shutil.rmtree(root)
        resumed += 1
    assert resumed > 5


def _store(image):
    """Return an image less what is below temporary names. A record on its way out counts until the new one is there."""
    return frozenset((path, data) for path, data in image.items() if not _is_litter(path, image))


def _is_litter(path, image):
    head, temporary, tail = path.partition(TEMPORARY)
    if not tail.startswith("old-"):
        return bool(temporary)
    record, _, _ = tail.removeprefix("old-").partition("/")
    return head + record.rpartition("-")[0] in image
