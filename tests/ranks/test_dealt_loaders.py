"""Ranks whose loader gives single batches load their own alone, to the same bits, and another data set is found out."""

import re
from collections import Counter

import pytest
from launching import assert_same_moments, launch, require_whole
from rank_job import BATCHES
from soaking import in_soak

from dalr_stream.storage.store import ActivationStore


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process accumulates and captures."""
    folder = tmp_path_factory.mktemp("one")
    for do in ("accumulate", "capture"):
        assert launch(folder / do, do, 1).codes == [0]
    return folder


def loaded_in(log):
    return Counter(tuple(map(int, line.split(":"))) for line in log.read_text().split())


@pytest.mark.parametrize("ranks", [3, *in_soak(2, 4)])
def test_each_rank_loads_its_own_batches_and_the_first_of_each_round(expected, tmp_path, ranks):
    log = tmp_path / "loaded"
    ended = launch(tmp_path / "store", "accumulate", ranks, LOADER="dealing", LOADED=str(log))
    assert ended.codes == [0] * ranks, ended.errors
    assert_same_moments(tmp_path / "store", expected / "accumulate")
    require_whole(tmp_path / "store")
    one, several = (ActivationStore(path).domain("target") for path in (expected / "accumulate", tmp_path / "store"))
    assert several.batches == one.batches  # with the digest of each, whoever loaded it
    batches = [batch for _, batch in loaded_in(log)]
    assert {*batches} == {*range(BATCHES)}
    assert len(batches) < ranks * BATCHES * 0.75


@pytest.mark.parametrize("workers", ["0", *in_soak("1")])
def test_torchs_own_loader_is_dealt(expected, tmp_path, workers):
    ended = launch(tmp_path / "store", "accumulate", 2, LOADER="torch", WORKERS=workers)
    assert ended.codes == [0, 0], ended.errors
    assert_same_moments(tmp_path / "store", expected / "accumulate")


def test_a_rank_killed_and_others_resume_with_dealt_batches(expected, tmp_path):
    ended = launch(tmp_path / "store", "accumulate", 2, LOADER="dealing", DIE="1:6")
    assert ended.codes == [1, -9]
    log = tmp_path / "loaded"
    ended = launch(tmp_path / "store", "accumulate", 3, LOADER="dealing", LOADED=str(log))
    assert ended.codes == [0] * 3, ended.errors
    assert_same_moments(tmp_path / "store", expected / "accumulate")
    require_whole(tmp_path / "store")
    assert min(batch for _, batch in loaded_in(log)) > 0


def test_a_capture_by_ranks_loads_each_batch_once_and_compares_some(expected, tmp_path):
    log = tmp_path / "loaded"
    ended = launch(tmp_path / "store", "capture", 2, LOADER="dealing", LOADED=str(log), DIE="1:15")
    assert ended.codes == [1, -9], ended.errors
    log.unlink()
    ended = launch(tmp_path / "store", "capture", 3, LOADER="dealing", LOADED=str(log))
    assert ended.codes == [0] * 3, ended.errors
    one, several = (ActivationStore(path).domain("target") for path in (expected / "capture", tmp_path / "store"))
    assert several == one
    often = Counter(batch for _, batch in loaded_in(log))
    assert {batch for batch, times in often.items() if times > 1} <= {0, 1, 2}  # each rank's first one


@pytest.mark.parametrize("do", ["accumulate", "capture"])
def test_another_data_set_on_a_rank_is_found_by_the_batches_that_several_load(tmp_path, do):
    ended = launch(tmp_path / "store", do, 2, LOADER="dealing", DIFFER="1:0" if do == "accumulate" else "1:1")
    assert ended.codes[0] == 1  # rank 1 of a capture may have sent all of its rows by then
    assert re.search(r"ranks: batch [01] is not the same for rank 1 and rank 0", ended.errors[0])
