"""Peak memory of compressing block by block, in a fresh process, on a network that was made shard by shard.

    python tests/network/blocks/peak_compress_into.py --hidden 4096 --between 14336 --heads 32 --blocks 4 --kills 5

Prints a line of JSON: bytes of all weights, of the largest piece, of one layer's replacement, and beyond the baseline
at the peak. Every layer that is named becomes a pair of half its weights, of drawn numbers. With `--kills` further
processes write to another folder, each killed at a random instant but the last, and what they leave is compared.
"""

import json
import random
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "streaming"))
sys.path.insert(0, str(Path(__file__).parents[2] / "engine" / "blocks"))
import peak_blocks
from peak_memory import baseline, peak_above

import dalr_stream as ds
from dalr_stream.network.blocks.pieces import largest_piece_bytes
from dalr_stream.network.surgery.compress import parameter_bytes
from dalr_stream.numerics.lowrank.factors import LowRankLayer


def half_rank(layer):
    return layer.inputs * layer.outputs // (2 * (layer.inputs + layer.outputs))


def drawn(layer, seed):
    draw, rank = np.random.default_rng(seed), half_rank(layer)
    down, up = draw.normal(size=(rank, layer.inputs)), draw.normal(size=(layer.outputs, rank))
    return LowRankLayer(down, up, np.zeros(layer.outputs))


def write(args, folder):
    network = ds.open_network(partial(peak_blocks.built, args), Path(args.folder) / "weights")
    layers = ds.network.select_layers(network, args.layers)
    pairs = {layer.name: partial(drawn, layer, seed) for seed, layer in enumerate(layers)}
    before, begun = baseline(), time.monotonic()
    ds.compress_into(network, pairs, folder, made_from="half")
    largest = max(8 * half_rank(layer) * (layer.inputs + layer.outputs) for layer in layers)
    found = {"weights": parameter_bytes(network), "piece": largest_piece_bytes(network), "replacement": largest}
    found |= {"peak": peak_above(before), "seconds": time.monotonic() - begun}
    sys.stdout.write(json.dumps(found) + "\n")


def killed(args, folder, begins, ends):
    """Kill processes while they write; return how many were killed, and the pieces that each left."""
    draw, kills, left = random.Random(args.seed), 0, []  # noqa: S311  # instants, not secrets
    while kills < args.kills:
        if peak_blocks.in_a_process(__file__, folder, draw.uniform(begins, ends)) is not None:
            shutil.rmtree(folder)
            continue
        kills += 1
        left.append(len(list(folder.with_name(f"{folder.name}.unfinished").glob("records/*"))))
    peak_blocks.in_a_process(__file__, folder)
    return {"kills": kills, "pieces_at_kills": left}


def main():
    parser = peak_blocks.parser()
    args = parser.parse_args()
    if args.child:
        write(args, Path(args.child))
        return
    folder = Path(args.folder)
    shutil.rmtree(folder, ignore_errors=True)
    peak_blocks.write_shards(args, folder / "weights")
    begun = time.monotonic()
    found, _ = peak_blocks.in_a_process(__file__, folder / "small")
    if args.kills:
        took = time.monotonic() - begun
        found |= killed(args, folder / "killed", took - found["seconds"], took)
        found["same"] = peak_blocks.digest(folder / "small") == peak_blocks.digest(folder / "killed")
    shutil.rmtree(folder)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
