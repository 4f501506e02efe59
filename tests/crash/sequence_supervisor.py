"""Kills a compression layer after layer, block by block, at random instants, and restarts it until it is done.

    python sequence_supervisor.py FOLDER KILLS SEED

As `blocks_supervisor` does. Each finished store must hold the very files that one which nobody interrupted leaves, and
no other; and those the network that the whole one becomes. Prints one line of JSON.
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
from safetensors.torch import load_file
from supervised import wait
from supervisor import prints, started
from trials import trial

import dalr_stream as ds

small = partial(Tower, 3)


def compressed(network, **options):
    torch.set_num_threads(1)
    choices = {name: ds.LayerChoice("dalr_anchored_affine", 3) for name in ("blocks.0.o", "blocks.1.q", "blocks.2.o")}
    choices["blocks.1.up"] = ds.LayerChoice("spectral", 6)
    folding = ds.Folding(workers=ds.Threads(1))
    rows = ds.RowRule(mask="mask")
    return ds.compress_sequentially(network, batches(3), choices, rows=rows, folding=folding, **options)


def compress(weights, root):
    compressed(ds.open_network(small, weights), store=root)


def require_as_whole(root):
    expected = compressed(made(small)).network.state_dict()
    for file in root.glob("blocks/block-*/network/model.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.equal(expected[name], tensor), name


@dataclasses.dataclass
class Outcome:
    kills: int = 0
    trials: int = 0
    kills_with_a_block_kept: int = 0
    kills_within_a_pass: int = 0
    wrong: list = dataclasses.field(default_factory=list)


def look(root, outcome):
    outcome.kills_with_a_block_kept += any(root.glob("blocks/block-*/network"))
    outcome.kills_within_a_pass += any(root.glob("blocks/block-*/passes/*"))
    for name, most in (("@stream-", 3), ("@compressed-", 3)):
        found = len(list(root.glob(f"blocks/unfinished/target/{name}*")))
        if found > most:
            outcome.wrong.append(f"trial {outcome.trials}: {found} generations of {name}")


def main(folder, kills, seed):
    draw, outcome = random.Random(seed), Outcome()  # noqa: S311  # instants, not secrets
    work = partial(compress, in_shards(made(small), folder / "weights"))
    begun = time.monotonic()
    assert wait(started(work, folder / "timed")) == 0
    seconds, expected = time.monotonic() - begun, prints(folder / "timed")
    assert wait(started(require_as_whole, folder / "timed")) == 0
    while outcome.kills < kills:
        trial(folder, work, expected, partial(draw.uniform, 0, seconds), outcome, kills, look)
    print(json.dumps(dataclasses.asdict(outcome)))  # noqa: T201  # the answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
