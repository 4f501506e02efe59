"""Several processes, one killed or not, leave what one process leaves, to the bit."""

import os
import subprocess
import sys

import pytest
import rank_job
from launching import assert_same_moments, launch, require_whole
from rank_job import ROWS
from soaking import in_soak

from dalr_stream.storage.store import ActivationStore

LOST = "ranks: rank {} on .* was lost: run the same command again, on any number of ranks, to resume"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process accumulates, and what it captures."""
    folder = tmp_path_factory.mktemp("one")
    for do in ("accumulate", "capture", "memory"):
        assert launch(folder / do, do, 1).codes == [0]
    return folder


@pytest.mark.parametrize("ranks", [4, *in_soak(2, 3, 8)])
def test_ranks_accumulate_the_bits_of_one_process(expected, tmp_path, ranks):
    ended = launch(tmp_path / "store", "accumulate", ranks)
    assert ended.codes == [0] * ranks, ended.errors
    assert_same_moments(tmp_path / "store", expected / "accumulate")
    require_whole(tmp_path / "store")
    assert not (tmp_path / "store" / "unfinished").exists()


@pytest.mark.parametrize(("ranks", "killed", "after"), [(2, "1:14", 3), *in_soak((3, "0:9", 1), (2, "0:22", 2))])
def test_a_rank_killed_stops_the_others_and_other_ranks_resume(expected, tmp_path, ranks, killed, after):
    ended, rank = launch(tmp_path / "store", "accumulate", ranks, DIE=killed), int(killed[0])
    assert ended.codes[rank] == -9
    for other in {*range(ranks)} - {rank}:
        assert ended.codes[other] == 1
        assert len(ended.errors[other].splitlines()) == 1
        assert_matches(LOST.format(rank), ended.errors[other])
    ended = launch(tmp_path / "store", "accumulate", after)
    assert ended.codes == [0] * after, ended.errors
    assert_same_moments(tmp_path / "store", expected / "accumulate")
    require_whole(tmp_path / "store")


def assert_matches(pattern, text):
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(text)


def test_ranks_capture_the_store_of_one_process(expected, tmp_path):
    ended = launch(tmp_path / "store", "capture", 2, DIE="1:15")
    assert ended.codes == [1, -9], ended.errors
    ended = launch(tmp_path / "store", "capture", 3)
    assert ended.codes == [0] * 3, ended.errors
    one, several = (ActivationStore(path).domain("target") for path in (expected / "capture", tmp_path / "store"))
    assert several == one  # with the digest of each tile
    assert several.samples == ROWS


def test_in_memory_rank_0_has_the_statistics(expected, tmp_path):
    ended = launch(tmp_path / "memory", "memory", 2, WRAP="gloo")
    assert ended.codes == [0, 0], ended.errors
    assert (tmp_path / "memory").read_bytes() == (expected / "memory").read_bytes()


def test_a_loader_that_gives_a_rank_other_batches_is_named(tmp_path):
    ended = launch(tmp_path / "store", "accumulate", 2, DIFFER="1:5")
    assert ended.codes == [1, 1]
    assert_matches("batch 5 is not the same for rank 1 and rank 0", ended.errors[0])
    assert_matches("ranks: batch 5 is not the same for rank 1 and rank 0", ended.errors[1])


@pytest.mark.soak
def test_torchrun_starts_the_ranks_again_and_they_resume(expected, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    done = subprocess.run(  # noqa: S603
        [*command, "--nproc-per-node", "2", rank_job.__file__, str(tmp_path / "store")],
        env={**os.environ, "DO": "accumulate", "DIE": "1:14"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    assert_same_moments(tmp_path / "store", expected / "accumulate")
