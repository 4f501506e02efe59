"""Ranks whose networks and sums lie on a CUDA device: the bits of one process there."""

import pytest
from launching import assert_same_moments, launch

pytestmark = pytest.mark.gpu


def test_ranks_on_a_device_accumulate_the_bits_of_one_process(cuda, tmp_path):
    for ranks in (1, 2):
        ended = launch(tmp_path / f"on-{ranks}", "accumulate", ranks, DEVICE=str(cuda))
        assert ended.codes == [0] * ranks, ended.errors
    assert_same_moments(tmp_path / "on-1", tmp_path / "on-2")


def test_a_network_in_a_wrapper_over_nccl_is_taken_out_of_it(cuda, tmp_path):
    ended = launch(tmp_path / "memory", "memory", 1, DEVICE=str(cuda), WRAP="nccl")
    assert ended.codes == [0], ended.errors


def test_strips_on_a_device_have_the_bits_of_the_whole(cuda, tmp_path):
    """Widths that are no multiple of anything: products of a strip take columns that lie otherwise in memory."""
    for ranks in (1, 3):
        ended = launch(tmp_path / f"on-{ranks}", "accumulate", ranks, DEVICE=str(cuda), SEGMENT="0", WIDE="2311")
        assert ended.codes == [0] * ranks, ended.errors
    assert_same_moments(tmp_path / "on-1", tmp_path / "on-3")
