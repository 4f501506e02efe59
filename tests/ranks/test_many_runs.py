"""A hundred runs on 1 to 8 ranks, a rank killed at random in half of them: none differs, no row is lost or doubled.

Prints what it found; `make soak` shows it.
"""

import random
from collections import Counter

import pytest
from launching import assert_same_moments, launch
from rank_job import BATCHES
from test_ranks import require_whole

RUNS = 100
MOST_RANKS = 8
SEGMENTS = (1, 2, 3, 5)
SECONDS = 2.0
"""Within which a rank is killed that is not told to die at a batch."""


@pytest.mark.soak
def test_a_hundred_runs_have_the_bits_of_one_process(tmp_path):
    draw = random.Random(18)  # noqa: S311
    found = Counter()
    for segment in SEGMENTS:
        assert launch(tmp_path / f"one-{segment}", "accumulate", 1, SEGMENT=str(segment)).codes == [0]
    for number in range(RUNS):
        store, segment = tmp_path / f"run-{number}", draw.choice(SEGMENTS)
        killed = number % 2 == 0
        if killed:
            found.update(one_killed(draw, store, segment))
        ranks = draw.randint(1, MOST_RANKS)
        ended = launch(store, "accumulate", ranks, SEGMENT=str(segment))
        assert ended.codes == [0] * ranks, ended.errors
        assert_same_moments(store, tmp_path / f"one-{segment}")
        require_whole(store)
        found["runs"] += 1
        found["ranks"] += ranks
    print("\n" + ", ".join(f"{name} {count}" for name, count in sorted(found.items())))  # noqa: T201
    assert found["resumed"] > RUNS // 8


def one_killed(draw, store, segment):
    """Yield what became of a run of which one rank was killed."""
    ranks = draw.randint(1, MOST_RANKS)
    rank = draw.randrange(ranks)
    if draw.random() < 0.5:
        ended = launch(store, "accumulate", ranks, SEGMENT=str(segment), DIE=f"{rank}:{draw.randrange(BATCHES)}")
        assert ended.codes[rank] == -9
    else:
        kill = rank, draw.uniform(0.0, SECONDS)
        ended = launch(store, "accumulate", ranks, SEGMENT=str(segment), kill=kill)
    yield "killed" if ended.codes[rank] == -9 else "ended before the kill"
    for other, (code, error) in enumerate(zip(ended.codes, ended.errors, strict=True)):
        if other != rank and code:
            assert len(error.splitlines()) == 1, error
            yield "others stopped"
    if (store / "unfinished" / "target" / "@direct-0" / "index").exists():
        yield "resumed"
