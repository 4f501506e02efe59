"""Kills an accumulation block by block with SIGKILL at random instants, and restarts it until it is done.

    python blocks_supervisor.py FOLDER KILLS SEED [gradients]

As `supervisor` does, on a tower of blocks whose weights are read from shards. Each finished store must hold the very
files that the whole network, which nobody interrupted, gives; with gradients blocks are gone through backwards, too.
Prints one line of JSON.
"""

import dataclasses
import json
import random
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "blocks"))
import torch
from block_networks import Tower, batches, in_shards, made
from supervised import wait
from supervisor import prints, started
from trials import trial

import dalr_stream as ds
from dalr_stream.streaming.lanes import Pace

small = partial(Tower, 3)


def accumulate(weights, gradients, root):
    torch.set_num_threads(1)
    network = made(small) if weights is None else ds.open_network(small, weights)
    folding = ds.Folding(workers=ds.Threads(1), pace=lambda: Pace(every_tiles=1))
    layers = ds.watch(network, ["blocks.*", "head"], gradients=gradients)
    rows = ds.RowRule(mask="mask", gradients=ds.GradientRule(draws=2))
    ds.accumulate(network, batches(3), layers, store=root, rows=rows, folding=folding)


@dataclasses.dataclass
class Outcome:
    kills: int = 0
    trials: int = 0
    kills_with_a_stream: int = 0
    kills_past_the_first_block: int = 0
    kills_on_the_way_back: int = 0
    wrong: list = dataclasses.field(default_factory=list)


def look(root, outcome):
    streams, back = list(root.glob("unfinished/target/@stream-*")), list(root.glob("unfinished/target/@back-*"))
    outcome.kills_with_a_stream += bool(streams)
    outcome.kills_past_the_first_block += any(path.name != "@stream-0" for path in streams)
    outcome.kills_on_the_way_back += bool(back)
    if len(streams) > 3 or len(back) > 2:
        outcome.wrong.append(f"trial {outcome.trials}: {len(streams)} generations, {len(back)} of gradients")


def main(folder, kills, seed, gradients):
    draw, outcome = random.Random(seed), Outcome()  # noqa: S311  # instants, not secrets
    work = partial(accumulate, in_shards(made(small), folder / "weights"), gradients)
    assert wait(started(partial(accumulate, None, gradients), folder / "whole")) == 0
    begun = time.monotonic()
    assert wait(started(work, folder / "timed")) == 0
    seconds, expected = time.monotonic() - begun, prints(folder / "whole")
    assert prints(folder / "timed") == expected
    while outcome.kills < kills:
        trial(folder, work, expected, partial(draw.uniform, 0, seconds), outcome, kills, look)
    print(json.dumps(dataclasses.asdict(outcome)))  # noqa: T201  # the answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), ["blocks.*"] if sys.argv[4:] else [])
