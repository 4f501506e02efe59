"""Peak memory of compressing layer after layer, block by block, in a fresh process, on a network made shard by shard.

    python tests/engine/blocks/peak_sequences.py --hidden 1024 --between 2816 --heads 16 --blocks 8

Prints a line of JSON: bytes of all weights, of one block, of the sums of its heaviest pass and of solving from them, of
what the dry run plans in all, and beyond the baseline at the peak. Weights are random, in bfloat16, of a decoder with
grouped queries; no more than one block of them is ever made at once, and the network that comes out stays on disk. All
layers of each block, or those of `--layers`, are compressed to half of their width.
"""

import json
import shutil
import sys
from pathlib import Path

from peak_blocks import baseline, opened, parser, peak_above, write_shards

import dalr_stream as ds
from dalr_stream.engine.sequential.blocks.estimate import estimate_by_blocks
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.numerics.methods import Method


def main():
    made = parser()
    made.set_defaults(layers=["re:model.layers.*proj"])
    made.add_argument("--target", default="stream", choices=["stream", "outputs"])
    args = made.parse_args()
    folder = Path(args.folder)
    shutil.rmtree(folder, ignore_errors=True)
    write_shards(args, folder / "weights")
    network, batches = opened(args)
    layers = ds.watch(network, args.layers)
    choices = {
        layer.name: ds.LayerChoice("dalr_anchored_affine", min(layer.inputs, layer.outputs) // 2) for layer in layers
    }
    folding = ds.Folding(workers=ds.Threads(args.threads))
    methods = dict.fromkeys(choices, Method.DALR_ANCHORED_AFFINE)
    plan = estimate_by_blocks(network, batches, methods, folding, blocks=True, target=Target(args.target))
    before = baseline()
    options = {"target": args.target, "store": folder / "store", "folding": folding, "progress": ds.show_progress()}
    result = ds.compress_sequentially(network, batches, choices, **options)
    found = {
        "weights": sum(parameter.nbytes for parameter in network.parameters()),
        "block": sum(parameter.nbytes for parameter in network.model.layers[0].parameters()),
        "sums": max(one.folding.peak_bytes for block in plan.plans for one in block.passes),
        "solving": max(one.solving_bytes for block in plan.plans for one in block.passes),
        "planned": plan.peak_bytes,
        "peak": peak_above(before),
        "compressed": sum(parameter.nbytes for parameter in result.network.parameters()),
    }
    shutil.rmtree(folder)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
