"""Kills a compression layer after layer, block by block, at random instants, and restarts it until it is done.

    python sequence_supervisor.py FOLDER KILLS SEED

As `blocks_supervisor` does; the network that comes of it is written to a folder of its own, by `compress_into`, and
killed there too. Each finished store and folder must hold the very files that one which nobody interrupted leaves, and
no other; and those the network that the whole one becomes. Prints one line of JSON.
"""

import dataclasses
import json
import random
import shutil
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
    result = compressed(ds.open_network(small, weights), store=root / "store")
    ds.compress_into(result.network, {}, root / "small", made_from="the sweep")


def require_as_whole(root):
    expected = compressed(made(small)).network.state_dict()
    for file in root.glob("store/blocks/block-*/network/model.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.equal(expected[name], tensor), name
    written = ds.load(root / "small", small).state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in expected.items())


def timed(work, root):
    begun = time.monotonic()
    assert wait(started(work, root)) == 0
    return time.monotonic() - begun


@dataclasses.dataclass
class Outcome:
    kills: int = 0
    trials: int = 0
    kills_with_a_block_kept: int = 0
    kills_within_a_pass: int = 0
    kills_while_written: int = 0
    wrong: list = dataclasses.field(default_factory=list)


def look(root, outcome):
    outcome.kills_with_a_block_kept += any(root.glob("store/blocks/block-*/network"))
    outcome.kills_within_a_pass += any(root.glob("store/blocks/block-*/passes/*"))
    outcome.kills_while_written += (root / "small.unfinished").exists()
    for name, most in (("@stream-", 3), ("@compressed-", 3)):
        found = len(list(root.glob(f"store/blocks/unfinished/target/{name}*")))
        if found > most:
            outcome.wrong.append(f"trial {outcome.trials}: {found} generations of {name}")


def main(folder, kills, seed):
    draw, outcome = random.Random(seed), Outcome()  # noqa: S311  # instants, not secrets
    work = partial(compress, in_shards(made(small), folder / "weights"))
    seconds = [timed(work, folder / "timed")]
    expected = prints(folder / "timed")
    assert wait(started(require_as_whole, folder / "timed")) == 0
    shutil.rmtree(folder / "timed" / "small")
    seconds.append(timed(work, folder / "timed"))
    while outcome.kills < kills:
        swept = outcome.trials % 2  # every other trial has all blocks solved, so that more kills meet what comes after
        if swept:
            shutil.copytree(folder / "timed" / "store", folder / f"trial-{outcome.trials}" / "store")
        trial(folder, work, expected, partial(draw.uniform, 0, seconds[swept]), outcome, kills, look)
    print(json.dumps(dataclasses.asdict(outcome)))  # noqa: T201  # the answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
