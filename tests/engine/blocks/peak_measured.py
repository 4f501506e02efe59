"""Peak memory of measuring candidates and of a score, block by block, in a fresh process, on a network made in shards.

    python tests/engine/blocks/peak_measured.py --hidden 2048 --between 5632 --heads 16 --blocks 4 --candidates 4

Prints a line of JSON: bytes of all weights, of one block and of what takes its layers' places, and beyond the baseline
at the peak; how often a block was read from its file for all candidates, and for the score of all batches. Weights are
random, in bfloat16, of a decoder with grouped queries; candidates have every layer of every block in a pair of half its
weights, of drawn numbers. No more than one block is ever made at once.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peak_blocks import baseline, opened, parser, peak_above, write_shards

import dalr_stream as ds
from dalr_stream.engine.sizes.by_blocks import ByBlocks
from dalr_stream.engine.sizes.measuring import SizedNetwork
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.network.blocks.scored import scored_by_blocks
from dalr_stream.network.saved.shards import Shards
from dalr_stream.numerics.methods import Family, Method

sys.path.insert(0, str(Path(__file__).parents[2] / "network" / "blocks"))
from drawn_pairs import pair

ONE = "model.layers.1.mlp.up_proj.weight"


class Drawn:
    """Solutions that are drawn numbers."""

    def __init__(self, network):
        self.shapes = {layer.name: layer for layer in ds.network.select_layers(network, ["re:model.layers.*proj"])}

    def method(self, layer, family):  # noqa: ARG002  # as menus have it
        return Method.SVD

    def at_size(self, layer, family, size):  # noqa: ARG002
        one = self.shapes[layer]
        return pair(one.outputs, one.inputs, rank=size, seed=size)


def likelihood(model, batches):
    total = 0.0
    for batch in batches:
        with torch.no_grad():
            logits = model(**batch).logits.float().log_softmax(-1)
        total += float(logits[:, :-1].gather(2, batch["input_ids"][:, 1:, None]).sum())
    return total


def counted():
    """Count how often a block's weights are read from their file."""
    read, tensor = [], Shards.tensor
    Shards.tensor = lambda self, name: read.append(name) or tensor(self, name)
    return lambda: read.count(ONE)


def main():
    made = parser()
    made.add_argument("--candidates", type=int, default=4)
    args = made.parse_args()
    folder = Path(args.folder)
    shutil.rmtree(folder, ignore_errors=True)
    write_shards(args, folder / "weights")
    network, batches = opened(args)
    solutions = Drawn(network)
    halves = {name: one.break_even_rank // 2 for name, one in solutions.shapes.items()}
    wanted = [
        SizedNetwork(str(number), {name: (Family.LOW_RANK, rank - number) for name, rank in halves.items()})
        for number in range(args.candidates)
    ]
    distance, readings, before = ds.OutputDistance(network, batches, samples=args.samples), counted(), baseline()
    bench = ByBlocks(network, distance, folder / "measuring", progress=ds.show_progress())
    found = list(bench.at_once(Menu(solutions, []))("candidates", wanted, scored=False))
    peak, of_candidates = peak_above(before), readings()
    options = {"blocks": True, "made_from": None, "progress": ds.show_progress()}
    scored_by_blocks(network, likelihood, batches, folder / "scoring", **options)
    block = network.model.layers[0]
    told = {
        "weights": sum(parameter.nbytes for parameter in network.parameters()),
        "block": sum(parameter.nbytes for parameter in block.parameters()),
        "replacements": sum(
            2 * halves[name] * (one.inputs + one.outputs)
            for name, one in solutions.shapes.items()
            if ".layers.0." in name
        ),
        "peak": peak,
        "peak with the score": peak_above(before),
        "readings": of_candidates,
        "readings of the score": readings() - of_candidates,
        "distances": [one.distance for one in found],
    }
    shutil.rmtree(folder)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
