"""A hundred runs on 1 to 8 ranks, see `rank_supervisor`; `make soak` shows what it found."""

import pytest
from rank_supervisor import supervise


@pytest.mark.soak
@pytest.mark.parametrize("do", ["accumulate", "blocks"])
def test_a_hundred_runs_have_the_bits_of_one_process(tmp_path, do):
    found = supervise(tmp_path, 100, 18, do)
    print(found)  # noqa: T201
    assert found["resumed from a checkpoint"] > 10
