"""Peak memory of accumulating block by block, in a fresh process, on a network that was made shard by shard.

    python tests/engine/blocks/peak_blocks.py --hidden 4096 --between 14336 --heads 32 --blocks 4 --kills 3

Prints a line of JSON: bytes of all weights, of the largest piece (a block, the embedding or the head), of the
accumulators as planned for the heaviest block, and beyond the baseline at the peak. Weights are random, in bfloat16, of
a decoder with grouped queries; no more than one block of them is ever made at once. With `--gradients` of some layers
the blocks are gone through backwards, too, and a batch's graph through a block is planned with the accumulators. With
`--kills` further processes accumulate to another store, each killed at a random instant but the last, and what they
leave is compared.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "streaming"))
from peak_memory import baseline, peak_above

import dalr_stream as ds
from dalr_stream.engine.blocks.estimate import estimate_blocks
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import direct_plan
from dalr_stream.engine.planning.estimate import StatedBatches

WORDS = 4096
INDEX = "model.safetensors.index.json"


def config_of(args):
    return LlamaConfig(
        vocab_size=WORDS, hidden_size=args.hidden, intermediate_size=args.between, num_hidden_layers=args.blocks,
        num_attention_heads=args.heads, num_key_value_heads=max(args.heads // 4, 1), dtype="bfloat16",
    )  # fmt: skip


def built(args):
    return AutoModelForCausalLM.from_config(config_of(args))


def write_shards(args, folder):
    """Write the weights a block at a time, and their index; the network itself is never made."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in built(args).state_dict().items()}
    parts = {}
    for name in shapes:
        parts.setdefault(".".join(name.split(".")[:3]), []).append(name)
    index, generator = {}, torch.Generator().manual_seed(0)
    for number, names in enumerate(parts.values()):
        file = f"model-{number:05d}.safetensors"
        state = {name: _drawn(shapes[name], generator) for name in names}
        save_file(state, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def _drawn(shape, generator):
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, shape[1] ** -0.5, generator=generator)


def watched(network, args):
    return ds.watch(network, args.layers, gradients=args.gradients)


def opened(args):
    """Return the network, whose weights stay in their files, and batches for it."""
    network = ds.open_network(lambda: built(args), Path(args.folder) / "weights")
    words = torch.randint(0, WORDS, (args.samples, args.tokens), generator=torch.Generator().manual_seed(1))
    return network, [{"input_ids": part} for part in words.split(args.batch)]


def accumulate(args, store):
    network, batches = opened(args)
    folding = ds.Folding(workers=ds.Threads(args.threads))
    before, begun = baseline(), time.monotonic()
    ds.accumulate(network, batches, watched(network, args), store=store, folding=folding, progress=ds.show_progress())
    sys.stdout.write(json.dumps({"peak": peak_above(before), "seconds": time.monotonic() - begun}) + "\n")


def planned(args):
    """Return bytes of all weights, of the largest piece, and of the accumulators of the heaviest block."""
    with torch.device("meta"):
        network = built(args)
        words = torch.zeros((args.batch, args.tokens), dtype=torch.int64)
    block = [layer for layer in watched(network, args) if ".layers.0." in layer.name]
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    names = {layer.name.rpartition(".")[2] for layer in block}
    own = [layer for layer in block if shared.get(layer.name.rpartition(".")[2]) not in names]
    plan = direct_plan(
        [load_of(layer, 0, BatchMemory()) for layer in own], ds.Folding(workers=ds.Threads(args.threads))
    )
    if args.gradients:
        stated = {"target": StatedBatches(words, args.samples)}
        rows, folding = ds.RowRule(prove=False), ds.Folding(workers=ds.Threads(args.threads))
        plan = estimate_blocks(network, stated, watched(network, args), folding, blocks=True, rows=rows)
    pieces = [network.model.layers[0], network.model.embed_tokens]
    sizes = [sum(parameter.nbytes for parameter in piece.parameters()) for piece in pieces]
    return {
        "weights": sum(parameter.nbytes for parameter in network.parameters()),
        "piece": max(sizes),
        "accumulators": plan.peak_bytes,
    }


def in_a_process(script, folder, kill_after=None):
    """Run the script on a folder in a process of its own; return its line and what it says, or None where killed."""
    command = [sys.executable, script, *sys.argv[1:], "--child", str(folder)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)  # noqa: S603
    try:
        output, said = child.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.communicate()
        return None
    assert child.returncode == 0, said
    return json.loads(output.splitlines()[-1]), said.splitlines()


def digest(store):
    digest = hashlib.sha256()
    for path in sorted(path for path in store.rglob("*") if path.is_file() and path.name != "writer.lock"):
        digest.update(f"{path.relative_to(store)}:".encode() + path.read_bytes())
    return digest.hexdigest()


def killed(args, seconds):
    """Kill as many processes as are asked for, each within the time that an uninterrupted one takes, then finish."""
    store, draw, kills = Path(args.folder) / "killed", random.Random(args.seed), 0  # noqa: S311  # instants, not secrets
    while kills < args.kills:
        if in_a_process(__file__, store, draw.uniform(0, seconds)) is None:
            kills += 1
        else:
            shutil.rmtree(store)
    in_a_process(__file__, store)
    return kills, digest(store)


def parser(**options):
    made = argparse.ArgumentParser(description=__doc__, **options)
    for name, value in {
        "hidden": 256, "between": 512, "heads": 4, "blocks": 4, "samples": 8, "tokens": 32, "batch": 2, "threads": 1,
        "kills": 0, "seed": 0,
    }.items():  # fmt: skip
        made.add_argument(f"--{name}", type=int, default=value)
    made.add_argument("--layers", nargs="+", default=["re:model.layers.*(q|o|gate)_proj"])
    made.add_argument("--gradients", nargs="*", default=[])
    made.add_argument("--folder", default="peak_blocks")
    made.add_argument("--child", help=argparse.SUPPRESS)
    return made


def main():
    args = parser().parse_args()
    if args.child:
        accumulate(args, args.child)
        return
    folder = Path(args.folder)
    shutil.rmtree(folder, ignore_errors=True)
    write_shards(args, folder / "weights")
    begun = time.monotonic()
    line, said = in_a_process(__file__, folder / "store")
    found = {**planned(args), **line, "said": said[-args.blocks :]}
    if args.kills:
        kills, ended = killed(args, time.monotonic() - begun)
        found |= {"kills": kills, "same": ended == digest(folder / "store")}
    shutil.rmtree(folder)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
