"""Kills a capture and an accumulation with SIGKILL at random instants, and restarts them until they are done.

    python supervisor.py FOLDER KILLS SEED

One process imports torch and dalr_stream once and forks a child for each attempt, so a kill costs the attempt alone.
The parent never computes: it has no thread when it forks. Each trial is a fresh store; its attempts are killed after a
delay drawn from the whole length of an uninterrupted run, so kills fall on the start-up, on commits, on the last one,
and now and then an attempt is done first. The store of every finished trial must hold the very files of a run that
nobody interrupted. Prints one line of JSON: kills, trials, attempts, kills after which rows were committed, and what
was wrong.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from supervised import wait
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import StoreNotFoundError
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.folding import Threads
from dalr_stream.streaming.lanes import Pace

TOKENS, WIDTH = 64, 8
TILES = 10
"""A tile has 4096 rows at these widths: so many tiles of the first layers, and a shorter one."""
BATCHES = (37, 1, 64, 5, 90, 23)


class Pooled(nn.Module):
    """Linear layers over 64, 32 and 1 tokens a sample, so that their tiles are full at other batches."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, 5)
        self.second = nn.Linear(5, 12)
        self.third = nn.Linear(24, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        y = torch.relu(self.second(torch.relu(self.first(x))))
        z = torch.relu(self.third(y.reshape(len(y), TOKENS // 2, -1)))
        return self.last(z.mean(dim=1))


def batches():
    generator, left, turn = torch.Generator().manual_seed(7), TILES * 4096 // TOKENS + 11, 0
    while left:
        samples = min(BATCHES[turn % len(BATCHES)], left)
        yield torch.randn(samples, TOKENS, WIDTH, generator=generator)
        left, turn = left - samples, turn + 1


def capture(root):
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Pooled().eval()
    ds.capture(model, batches(), ds.network.select_layers(model, ["*"]), root, domain="target")


def accumulate(root):
    accumulate_stored(root, domain="target", folding=ds.Folding(workers=Threads(2), pace=lambda: Pace(every_tiles=1)))


def both(root):
    """Capture, then accumulate: the whole way to moments."""
    capture(root)
    accumulate(root)


def started(work, root):
    """Fork a child that does `work` and leaves with 0, or prints why it could not."""
    child = os.fork()
    if child:
        return child
    try:
        work(root)
    except BaseException:  # noqa: BLE001  # a child's every failure is reported by its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def prints(root):
    """Return a digest of every file but the lock, by path: tiles, metadata, manifest, weights, moments."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "writer.lock"]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def committed(root):
    """Return the committed samples, or 0."""
    try:
        domains = ActivationStore(root).manifest.domains
    except StoreNotFoundError:
        return 0
    return domains["target"].committed_samples if domains else 0


@dataclasses.dataclass
class Outcome:
    kills: int = 0
    trials: int = 0
    attempts: int = 0
    kills_with_rows: int = 0
    kills_after_capture: int = 0
    most_kills_of_one_store: int = 0
    commits_of_one_run: int = 0
    wrong: list = dataclasses.field(default_factory=list)


def lengths(folder, expected):
    """Return the seconds that an uninterrupted run takes, once the machine is warm."""
    taken = []
    for number in range(2):
        root, start = folder / f"timed-{number}", time.monotonic()
        assert wait(started(both, root)) == 0
        taken.append(time.monotonic() - start)
        assert prints(root) == expected, "two uninterrupted runs differ"
        shutil.rmtree(root)
    return min(taken)


def trial(folder, expected, seconds, draw, outcome, kills):
    root, of_this = folder / f"trial-{outcome.trials}", 0
    while True:
        outcome.attempts += 1
        child = started(both, root)
        # where all kills are spent, the attempt is left to finish
        until = time.monotonic() + draw.uniform(0, seconds) if outcome.kills < kills else None
        code = wait(child, until)
        if code is not None:
            break
        os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code != -signal.SIGKILL:
            break  # it was done in the meantime
        outcome.kills += 1
        of_this += 1
        outcome.kills_with_rows += committed(root) > 0
        outcome.kills_after_capture += (root / "moments").exists()
    if code != 0:
        outcome.wrong.append(f"trial {outcome.trials}: a resumed run failed after {of_this} kills")
    found = prints(root)
    if found != expected:
        odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        outcome.wrong.append(f"trial {outcome.trials}: {len(odd)} files differ after {of_this} kills: {odd[:5]}")
    outcome.most_kills_of_one_store = max(outcome.most_kills_of_one_store, of_this)
    outcome.trials += 1
    shutil.rmtree(root)


def main(folder, kills, seed):
    draw, outcome, whole = random.Random(seed), Outcome(), folder / "whole"  # noqa: S311  # instants, not secrets
    assert wait(started(both, whole)) == 0
    expected = prints(whole)
    seconds = lengths(folder, expected)
    outcome.commits_of_one_run = len(list((whole / "activations").rglob("c/*/0")))
    while outcome.kills < kills:
        trial(folder, expected, seconds, draw, outcome, kills)
    print(json.dumps(dataclasses.asdict(outcome)))  # noqa: T201  # the answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
