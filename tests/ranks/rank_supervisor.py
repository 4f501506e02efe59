"""Runs on 1 to 8 ranks, a rank killed at random in half of them: none may differ, no row be lost or doubled.

python tests/ranks/rank_supervisor.py FOLDER RUNS SEED [blocks]

With `blocks` the network goes block by block, its weights on disk.
"""

import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from launching import assert_same_moments, launch, require_whole
from rank_job import BATCHES, deep_network

import dalr_stream as ds

MOST_RANKS = 8
SEGMENTS = (0, 1, 2, 3, 5)
"""Without segments the ranks share the sums."""
LOADERS = ("plain", "dealing", "torch")
"""All batches for every rank, or each rank's own, see rank_job."""
SECONDS = 2.0
"""Within which a rank is killed that is not told to die at a batch."""


def supervise(folder, runs, seed, do="accumulate"):
    """Return how often what happened; raises AssertionError at the first run that is wrong."""
    draw, found = random.Random(seed), Counter()  # noqa: S311
    folder.mkdir(parents=True, exist_ok=True)
    ds.network.save_weights(deep_network(), folder / "deep.safetensors")
    start = partial(launch, WEIGHTS=str(folder / "deep.safetensors"))
    for segment in SEGMENTS:
        assert start(folder / f"one-{segment}", do, 1, SEGMENT=str(segment)).codes == [0]
    for number in range(runs):
        store, segment = folder / f"run-{number}", draw.choice(SEGMENTS)
        if number % 2 == 0:
            found.update(_one_killed(draw, partial(start, store, do), store, segment, within=_within(draw, do)))
        ranks = draw.randint(1, MOST_RANKS)
        ended = start(store, do, ranks, SEGMENT=str(segment), LOADER=draw.choice(LOADERS))
        assert ended.codes == [0] * ranks, ended.errors
        assert_same_moments(store, folder / f"one-{segment}")
        require_whole(store)
        found["runs"] += 1
        found["ranks"] += ranks
    return found


def _within(draw, do):
    """Return the generation of the stream that is there when a rank is killed, where the network goes by blocks."""
    return None if do == "accumulate" else draw.randrange(3)


def _one_killed(draw, start, store, segment, within):
    """Yield what became of a run of which one rank was killed."""
    unfinished = store / "unfinished" / "target"
    ranks = draw.randint(1, MOST_RANKS)
    rank, loader = draw.randrange(ranks), draw.choice(LOADERS)
    if draw.random() < 0.5:
        die = f"{rank}:{draw.randrange(BATCHES)}"
        begun = {} if within is None else {"DIE_WITH": str(unfinished / f"@stream-{within}")}
        ended = start(ranks, SEGMENT=str(segment), DIE=die, **begun)
        assert ended.codes[rank] == -9, ended.errors
        yield "killed at a batch"
    else:
        kill = rank, draw.uniform(0.0, SECONDS if within is None else 3 * SECONDS)
        ended = start(ranks, kill=kill, SEGMENT=str(segment), LOADER=loader)
        yield "killed at an instant" if ended.codes[rank] == -9 else "ended before the kill"
    for other, (code, error) in enumerate(zip(ended.codes, ended.errors, strict=True)):
        if other != rank and code:
            assert len(error.splitlines()) == 1, error
            yield "other ranks stopped"
    if any(unfinished.glob("@direct-*/index")):
        yield "resumed from a checkpoint"
    if any(unfinished.glob("@stream-[12]")):
        yield "resumed past the first block"


if __name__ == "__main__":
    told = supervise(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    print(", ".join(f"{name}: {count}" for name, count in sorted(told.items())))  # noqa: T201
