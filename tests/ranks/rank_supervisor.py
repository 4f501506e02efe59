"""Runs on 1 to 8 ranks, a rank killed at random in half of them: none may differ, no row be lost or doubled.

python tests/ranks/rank_supervisor.py FOLDER RUNS SEED
"""

import random
import sys
from collections import Counter
from pathlib import Path

from launching import assert_same_moments, launch, require_whole
from rank_job import BATCHES

MOST_RANKS = 8
SEGMENTS = (0, 1, 2, 3, 5)
"""Without segments the ranks share the sums."""
LOADERS = ("plain", "dealing", "torch")
"""All batches for every rank, or each rank's own, see rank_job."""
SECONDS = 2.0
"""Within which a rank is killed that is not told to die at a batch."""


def supervise(folder, runs, seed):
    """Return how often what happened; raises AssertionError at the first run that is wrong."""
    draw, found = random.Random(seed), Counter()  # noqa: S311
    folder.mkdir(parents=True, exist_ok=True)
    for segment in SEGMENTS:
        assert launch(folder / f"one-{segment}", "accumulate", 1, SEGMENT=str(segment)).codes == [0]
    for number in range(runs):
        store, segment = folder / f"run-{number}", draw.choice(SEGMENTS)
        if number % 2 == 0:
            found.update(_one_killed(draw, store, segment))
        ranks = draw.randint(1, MOST_RANKS)
        ended = launch(store, "accumulate", ranks, SEGMENT=str(segment), LOADER=draw.choice(LOADERS))
        assert ended.codes == [0] * ranks, ended.errors
        assert_same_moments(store, folder / f"one-{segment}")
        require_whole(store)
        found["runs"] += 1
        found["ranks"] += ranks
    return found


def _one_killed(draw, store, segment):
    """Yield what became of a run of which one rank was killed."""
    ranks = draw.randint(1, MOST_RANKS)
    rank, loader = draw.randrange(ranks), draw.choice(LOADERS)
    if draw.random() < 0.5:
        die = f"{rank}:{draw.randrange(BATCHES)}"
        ended = launch(store, "accumulate", ranks, SEGMENT=str(segment), DIE=die)
        assert ended.codes[rank] == -9, ended.errors
        yield "killed at a batch"
    else:
        kill = rank, draw.uniform(0.0, SECONDS)
        ended = launch(store, "accumulate", ranks, kill=kill, SEGMENT=str(segment), LOADER=loader)
        yield "killed at an instant" if ended.codes[rank] == -9 else "ended before the kill"
    for other, (code, error) in enumerate(zip(ended.codes, ended.errors, strict=True)):
        if other != rank and code:
            assert len(error.splitlines()) == 1, error
            yield "other ranks stopped"
    if (store / "unfinished" / "target" / "@direct-0" / "index").exists():
        yield "resumed from a checkpoint"


if __name__ == "__main__":
    told = supervise(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(", ".join(f"{name}: {count}" for name, count in sorted(told.items())))  # noqa: T201
