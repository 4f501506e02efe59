"""Layer after layer through a transformer of MiniLM's shape, against a plain script that knows how it is built.

The script keeps the hidden states of both networks between the blocks, so it runs each block once a network, and sums
what the solver reads: X'X, Z'X and the means. It solves as the engine does, affine, towards the layer's own weight.
Compared is CPU time: the engine folds on every core.
"""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timing import Row, against, race
from torch import nn
from transformers import BertConfig, BertModel

import dalr_stream as ds
from dalr_stream.errors import FewSamplesWarning, ParameterIncreaseWarning

RIDGE = 1e-3
SCRIPT, ENGINE = "a script that keeps the states between blocks", "compress_sequentially"
BARS = {ENGINE: 1.3}
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """Of a transformer, of what it reads, and of the factors."""

    width: int = 384
    blocks: int = 6
    heads: int = 12
    sentences: int = 400
    longest: int = 128
    batch: int = 32
    rank: int = 96

    @property
    def words(self) -> str:
        """The data, in words."""
        return f"{self.sentences} sentences of up to {self.longest} tokens, {self.batch} a batch"


def transformer(size: Size) -> BertModel:
    """Random weights, larger than at the start of a training: what a layer loses then shows in the next."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        initializer_range=0.05,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def sentences(size: Size) -> list[Batch]:
    """Random tokens, padded."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 1000, (size.sentences, size.longest), generator=generator)
    lengths = torch.randint(size.longest // 2, size.longest + 1, (size.sentences, 1), generator=generator)
    mask = (torch.arange(size.longest) < lengths).long()
    parts = zip((tokens * mask).split(size.batch), mask.split(size.batch), strict=True)
    return [{"input_ids": tokens, "attention_mask": mask} for tokens, mask in parts]


def feed_forward(size: Size) -> list[str]:
    """Both layers of every block."""
    parts = ("intermediate.dense", "output.dense")
    return [f"encoder.layer.{block}.{part}" for block, part in itertools.product(range(size.blocks), parts)]


def engine(model: BertModel, batches: Sequence[Batch], size: Size) -> nn.Module:
    """By the package."""
    choices = {name: ds.LayerChoice("dalr_anchored_affine", size.rank, RIDGE) for name in feed_forward(size)}
    folding, rows = ds.Folding(ds.HoldoutRule(0.0)), ds.RowRule(mask="attention_mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return ds.compress_sequentially(model, batches, choices, rows=rows, folding=folding).network


def script(model: BertModel, batches: Sequence[Batch], size: Size) -> nn.Module:
    """By hand."""
    small = copy.deepcopy(model)
    with torch.inference_mode():
        then = [model.embeddings(batch["input_ids"]) for batch in batches]
        now = [states.clone() for states in then]
        masks = [batch["attention_mask"].bool() for batch in batches]
        scores = [torch.where(mask, 0.0, -torch.inf)[:, None, None, :] for mask in masks]
        for original, block in zip(model.encoder.layer, small.encoder.layer, strict=True):
            then = [original.attention(states, score)[0] for states, score in zip(then, scores, strict=True)]
            now = [block.attention(states, score)[0] for states, score in zip(now, scores, strict=True)]
            wide = [original.intermediate.dense(states) for states in then]
            block.intermediate.dense = _pair(block.intermediate.dense, now, wide, masks, size.rank)
            inner = [block.intermediate(states) for states in now]
            wide = [original.intermediate.intermediate_act_fn(states) for states in wide]
            given = [original.output.dense(states) for states in wide]
            block.output.dense = _pair(block.output.dense, inner, given, masks, size.rank)
            then = [original.output.LayerNorm(a + b) for a, b in zip(given, then, strict=True)]
            now = [block.output(a, b) for a, b in zip(inner, now, strict=True)]
    return small


def _pair(
    layer: nn.Linear, read: Sequence[torch.Tensor], given: Sequence[torch.Tensor], masks: Sequence[Any], rank: int
) -> nn.Sequential:
    """A factor pair: of all maps of the rank the one nearest to what the layer gave, and to its weight."""
    n, (m, d) = 0, layer.weight.shape
    xx, zx = np.zeros((d, d)), np.zeros((m, d))
    x_sum, z_sum = np.zeros(d), np.zeros(m)
    for reads, gives, mask in zip(read, given, masks, strict=True):
        x, z = reads[mask].double().numpy(), gives[mask].double().numpy()
        n += len(x)
        xx += x.T @ x
        zx += z.T @ x
        x_sum += x.sum(axis=0)
        z_sum += z.sum(axis=0)
    x_mean, z_mean = x_sum / n, z_sum / n
    xx -= n * np.outer(x_mean, x_mean)
    zx -= n * np.outer(z_mean, x_mean)
    weight = layer.weight.double().numpy()
    ridge = RIDGE * np.trace(xx) / d
    xx[np.diag_indices(d)] += ridge
    root = np.linalg.cholesky(xx)
    best = np.linalg.solve(xx, (zx + ridge * weight).T).T
    left = np.linalg.svd(best @ root, full_matrices=False)[0][:, :rank]
    down, up = nn.Linear(d, rank, bias=False), nn.Linear(rank, m)
    down.weight.data = torch.from_numpy(left.T @ best).float()
    up.weight.data = torch.from_numpy(left.copy()).float()
    up.bias.data = torch.from_numpy(z_mean - left @ (left.T @ best @ x_mean)).float()
    return nn.Sequential(down, up)


def difference(one: nn.Module, other: nn.Module, batches: Sequence[Batch]) -> float:
    """The largest difference of two networks' last states where there are words, over the largest state."""

    def states(network: nn.Module) -> Iterator[torch.Tensor]:
        return (network(**batch).last_hidden_state[batch["attention_mask"].bool()] for batch in batches)

    with torch.inference_mode():
        return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(states(one), states(other), strict=True))


def in_turn(size: Size, turns: int) -> tuple[list[Row], float]:
    """Both, and how far the states of their networks are apart."""
    model, batches = transformer(size), sentences(size)
    made: dict[str, nn.Module] = {}

    def run(name: str, compress: Callable[[BertModel, Sequence[Batch], Size], nn.Module]) -> None:
        made[name] = compress(model, batches, size)

    seconds = race(
        {SCRIPT: lambda: run(SCRIPT, script), ENGINE: lambda: run(ENGINE, engine)}, turns, clock=time.process_time
    )
    return against(SCRIPT, seconds, BARS), difference(made[SCRIPT], made[ENGINE], batches)
