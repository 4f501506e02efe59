"""A full disk and a broken one, at every operation in turn: a clear error, the last commit as it was, no lock held, and
the same command again ends in the same files."""

import errno
import os
import shutil

import pytest
from crashing_disk import Disk, failing_from
from scenarios import SCENARIOS, Truth
from stores import files_of

from dalr_stream.errors import DiskSpaceError, StoreError
from dalr_stream.storage.lock import locked

EVERY = {errno.ENOSPC: 17, errno.EIO: 29}
"""Operations from one failure to the next; a scenario has some hundreds. `make soak` has a failure at each."""


pytestmark = pytest.mark.usefixtures("quick_stores")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "input/output error"])
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "captured again"])
def test_a_failing_disk_is_named_loses_nothing_and_the_same_command_goes_on(tmp_path, name, code, soak):
    scenario, before, after = SCENARIOS[name], tmp_path / "before", tmp_path / "after"
    scenario.prepare(before)
    copy(before, after)
    with Disk(after).recording() as disk:
        scenario.act(after)
    truth, files, refused = Truth(before, after), files_of(after), 0
    for number in range(0, len(disk.journal), 1 if soak else EVERY[code]):
        root = tmp_path / "failing"
        copy(before, root)
        with Disk(root, failing_from(number, code)).recording():
            try:
                scenario.act(root)
            except (DiskSpaceError, StoreError) as error:
                refused += 1
                expected = DiskSpaceError if code == errno.ENOSPC else StoreError
                assert type(error) is expected  # noqa: PT017
                assert str(root) in str(error)  # noqa: PT017
                assert os.strerror(code) in str(error)  # noqa: PT017
                assert "run the same command again" in str(error)  # noqa: PT017
        if root.exists():
            truth.assert_held_by(root)
        scenario.act(root)  # would be refused, were the lock still held
        with locked(root):
            assert files_of(root) == files
        shutil.rmtree(root)
    frees_only = name == "activations deleted" and code == errno.ENOSPC  # renames and removals: a full disk takes them
    assert frees_only == (refused == 0)


def test_a_failure_of_the_users_own_loader_is_not_blamed_on_the_store(tmp_path):
    import torch
    from scenarios import network

    import dalr_stream as ds

    def batches():
        yield torch.zeros(3, 24)
        raise FileNotFoundError("image 7 is not there")

    with pytest.raises(FileNotFoundError, match="image 7"):
        ds.capture(network(), batches(), ds.network.select_layers(network(), ["*"]), tmp_path, domain="target")


def test_a_folder_without_rights_is_named(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(StoreError, match=r"store' cannot be written \(.*Permission denied.*check the disk"):
        SCENARIOS["first capture"].act(tmp_path / "store")


def copy(source, target):
    if source.exists():
        shutil.copytree(source, target)
