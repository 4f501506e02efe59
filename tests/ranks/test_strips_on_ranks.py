"""Ranks that share the sums of layers leave what one process leaves, to the bit, also where one is killed."""

import pytest
import rank_job
from launching import assert_same_moments, launch, moments_in, require_whole
from soaking import in_soak

from dalr_stream.engine.estimate import estimate
from dalr_stream.network.layers.spec import select_layers

WIDE = {"WIDE": "2100", "LIMIT": "380"}
"""Three blocks of rows, which fit on none of two ranks with the sums of all segments, but for a strip."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process accumulates by lanes, and what it accumulates of a wide layer by segments."""
    folder = tmp_path_factory.mktemp("one")
    assert launch(folder / "lanes", "accumulate", 1, SEGMENT="0").codes == [0]
    assert launch(folder / "memory", "memory", 1, SEGMENT="0").codes == [0]
    assert launch(folder / "wide", "accumulate", 1, WIDE="2100").codes == [0]
    return folder


@pytest.mark.parametrize(("ranks", "loader"), [(3, "dealing"), *in_soak((2, "plain"), (8, "torch"), (4, "plain"))])
def test_without_segments_ranks_share_the_sums_of_all_layers(expected, tmp_path, ranks, loader):
    ended = launch(tmp_path / "store", "accumulate", ranks, SEGMENT="0", LOADER=loader)
    assert ended.codes == [0] * ranks, ended.errors
    assert_same_moments(tmp_path / "store", expected / "lanes")
    require_whole(tmp_path / "store")
    assert not (tmp_path / "store" / "unfinished").exists()


@pytest.mark.parametrize(("ranks", "killed", "after"), [(2, "1:15", 3), *in_soak((3, "0:9", 1), (4, "2:22", 2))])
def test_a_rank_killed_stops_the_others_and_other_ranks_resume(expected, tmp_path, ranks, killed, after):
    ended, rank = launch(tmp_path / "store", "accumulate", ranks, SEGMENT="0", DIE=killed), int(killed[0])
    assert ended.codes[rank] == -9
    for other in {*range(ranks)} - {rank}:
        assert ended.codes[other] == 1
        assert ended.errors[other].startswith(f"ranks: rank {rank} on ")
        assert len(ended.errors[other].splitlines()) == 1
    assert (tmp_path / "store" / "unfinished" / "target" / "@direct-0" / "index").exists()
    ended = launch(tmp_path / "store", "accumulate", after, SEGMENT="0")
    assert ended.codes == [0] * after, ended.errors
    assert_same_moments(tmp_path / "store", expected / "lanes")
    require_whole(tmp_path / "store")


def test_in_memory_rank_0_has_the_statistics(expected, tmp_path):
    ended = launch(tmp_path / "memory", "memory", 2, SEGMENT="0")
    assert ended.codes == [0, 0], ended.errors
    assert (tmp_path / "memory").read_bytes() == (expected / "memory").read_bytes()


@pytest.mark.parametrize("ranks", [2, *in_soak(3)])
def test_a_layer_that_fits_on_no_rank_goes_in_strips_and_one_beside_it_by_segments(expected, tmp_path, ranks):
    ended = launch(tmp_path / "store", "accumulate", ranks, **WIDE)
    assert ended.codes == [0] * ranks, ended.errors
    assert_same_moments(tmp_path / "store", expected / "wide")
    require_whole(tmp_path / "store")
    assert [layer.inputs.features for layer in moments_in(tmp_path / "store").values()] == [12, 2100]


def test_what_fits_on_no_rank_even_in_strips_is_refused_with_what_would_do(tmp_path):
    ended = launch(tmp_path / "store", "accumulate", 2, WIDE="2100", LIMIT="200")
    assert ended.codes == [1, 1]
    for word in ("layer '2': folding 2,100 features needs", "on each of 2 ranks", "segment_batches = 0", "or raise"):
        assert word in ended.errors[0]
    assert len(ended.errors[1].splitlines()) == 1


def test_the_plan_says_which_layers_go_in_strips(monkeypatch):
    for word, value in {**WIDE, "RANK": "0"}.items():
        monkeypatch.setenv(word, value)
    model = rank_job.network()
    layers, folding = select_layers(model, ["*"]), rank_job.folding()
    found = estimate(model, {"target": rank_job.Loader()}, layers, folding, direct=True, ranks=2)
    assert found.groups == (("0",), ("2",))
    assert [one.layers for one in found.strips] == [("2",)]
    assert found.in_strips("0") is None
    assert found.peak_bytes <= folding.memory_limit_bytes
