"""What compressing layer after layer costs: block by block, and by layers through the whole network.

    python tests/engine/blocks/cost_of_sequences.py --blocks 6 12 24

Every layer of each block of a decoder is compressed: a pass for q, k and v, for o, for gate and up, and for down. Three
ways, each in the same process: block by block; the whole network, each pass going on from values in memory where they
fit; and the whole network where they do not. Prints, for each, processor seconds and how often a block's norms ran,
divided by norms, blocks and batches, and whether all three networks are the same to the bit.
"""

import argparse
import json
import shutil
import sys
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import dalr_stream as ds
from dalr_stream.engine.sequential import pass_plan
from dalr_stream.errors import FewSamplesWarning, ParameterIncreaseWarning

WORDS, NORMS = 512, 2


def built(args, blocks):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=WORDS, hidden_size=args.hidden, intermediate_size=args.between, num_hidden_layers=blocks,
            num_attention_heads=args.heads, num_key_value_heads=max(args.heads // 4, 1),
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config).eval()


@contextmanager
def counted(samples):
    """Count how often a norm runs on a batch of the full size; one whose values are known is called, and does not."""
    runs, forward = Counter(), LlamaRMSNorm.forward

    def counting(norm, x):
        runs[len(x) == samples] += 1
        return forward(norm, x)

    LlamaRMSNorm.forward = counting
    try:
        yield runs
    finally:
        LlamaRMSNorm.forward = forward


def compressed(model, args, batches, **options):
    layers = ds.watch(model, ["re:model.layers.*(q|k|v|o|gate|up|down)_proj"])
    choices = {layer.name: ds.LayerChoice("dalr_anchored_affine", args.rank) for layer in layers}
    folding = ds.Folding(workers=ds.Threads(1))
    return ds.compress_sequentially(model, batches, choices, folding=folding, **options).network


def measured(args, depth, batches, room, **options):
    model, usual = built(args, depth), pass_plan.KEPT_BYTES
    begun = time.process_time()
    with counted(args.batch) as runs:
        try:
            pass_plan.KEPT_BYTES = room
            small = compressed(model, args, batches, **options)
        finally:
            pass_plan.KEPT_BYTES = usual
    return small, time.process_time() - begun, runs[True] / (NORMS * depth * len(batches))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2])
    for name, value in {
        "hidden": 64, "between": 128, "heads": 4, "samples": 64, "tokens": 64, "batch": 16, "rank": 16,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=Path("cost_of_sequences"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for found in measure(args, args.blocks):
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def measure(args, depths):
    """Yield what each depth costs."""
    words = torch.randint(0, WORDS, (args.samples, args.tokens), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": part} for part in words.split(args.batch)]
    for blocks in depths:
        ways = {
            "blocks": (2**30, {"blocks": True, "store": args.folder / "store"}),
            "kept": (2**30, {}),
            "streamed": (0, {}),
        }
        with warnings.catch_warnings():
            for category in (ParameterIncreaseWarning, FewSamplesWarning):
                warnings.simplefilter("ignore", category)
            found = {name: measured(args, blocks, batches, room, **given) for name, (room, given) in ways.items()}
        shutil.rmtree(args.folder / "store")
        states = [network.state_dict() for network, _, _ in found.values()]
        same = all(torch.equal(tensor, other[name]) for other in states[1:] for name, tensor in states[0].items())
        told = {name: {"seconds": round(spent, 1), "runs": round(runs, 2)} for name, (_, spent, runs) in found.items()}
        yield {"blocks": blocks, "same": same, **told}


if __name__ == "__main__":
    main()
