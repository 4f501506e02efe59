"""MiniLM compressed whole and block by block, from moments made either way: the same tensors, to the bit.

    pip install 'dalr_stream[sentences]'; python tests/network/blocks/same_minilm.py

Its feed-forward layers keep half their nodes, its attention's layers half their weights as pairs. Sentences are drawn
words. Prints how many tensors there are and how many differ.
"""

import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "pipelines" / "sentences"))
import dalr_stream as ds
import sentences_network

ROWS = ds.RowRule(mask="attention_mask")


def build():
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(sentences_network.model_folder())
    return AutoModel.from_config(config, add_pooling_layer=False)


def sentences(count=4, samples=8, words=32):
    draw = torch.Generator().manual_seed(0)
    for _ in range(count):
        lengths = torch.randint(4, words + 1, (samples, 1), generator=draw)
        mask = (torch.arange(words) < lengths).long()
        yield {"input_ids": torch.randint(1000, 30000, (samples, words), generator=draw), "attention_mask": mask}


def replacement(statistics, name):
    layer = statistics[name]
    if name.endswith("intermediate.dense"):
        return ds.spectral(layer).at_size(768)
    return ds.dalr(layer).at_rank(96)


def compressed(network, folder, batches):
    layers = ds.watch(network, [r"re:encoder.layer.\d+.(attention.*|intermediate).*"], example=batches[0])
    statistics = ds.accumulate(network, batches, layers, store=folder / "store", rows=ROWS)
    names = [name for name in statistics if not name.endswith("output.dense") or "attention" in name]
    return {name: partial(replacement, statistics, name) for name in names}


def main():
    batches, folder = list(sentences()), Path(tempfile.mkdtemp())
    whole = sentences_network.build(pooler=False)
    whole.save_pretrained(folder / "weights", max_shard_size="20MB")
    small = ds.compress(
        whole, {n: g() for n, g in compressed(whole, folder / "whole", batches).items()}, example=batches[0]
    )
    network = ds.open_network(build, folder / "weights")
    given = compressed(network, folder / "blocks", batches)
    ds.compress_into(network, given, folder / "small", example=batches[0])
    one, other = small.state_dict(), ds.load(folder / "small", build).state_dict()
    differ = [name for name in one.keys() | other.keys() if name not in one or not torch.equal(one[name], other[name])]
    found = {"replaced": len(given), "tensors": len(one), "differ": len(differ)}
    shutil.rmtree(folder)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
