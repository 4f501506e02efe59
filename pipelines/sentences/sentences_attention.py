"""The encoder's attention at several budgets: each of its layers a factor pair, or heads of fewer dimensions.

    python pipelines/sentences/sentences_attention.py

Queries, keys, values and output of all six blocks, at the same share of their weights: those that scores and outputs
lose least by, or those that the hidden states feel least; and one attention after the other, its output layer solved
for what it reads by then. No labels and no fine-tuning; scores as in `sentences_budgets.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

import dalr_stream as ds
from dalr_stream.network import Structure
from dalr_stream.numerics import HeadLayout, NarrowedHeads, head_factors
from sentences_budgets import BUDGETS, FELT, ROWS, Scores, head, plain, print_table

EVERY = ds.Folding(ds.HoldoutRule(0.0))
OUTPUT = "encoder.layer.{}.attention.output.dense"
PAIRS = (ds.Method.SVD, ds.Method.DALR_ANCHORED_AFFINE, ds.Method.DALR_WEIGHTED_AFFINE)


def narrowed(
    statistics: ds.Statistics, layouts: Iterable[HeadLayout], share: float, *, weighted: bool = False
) -> dict[str, NarrowedHeads]:
    """Return heads of at most that share of the dimensions: the four layers have as large a share of their weights."""
    heads = (head_factors(statistics, one, weighted=weighted) for one in layouts)
    return {one.layout.output: one.at_size(int(share * one.layout.size)) for one in heads}


def in_turn(model: nn.Module, batches: Iterable[Any], choices: Mapping[str, ds.LayerChoice], target: str) -> nn.Module:
    """Return the network with one attention narrowed after the other."""
    return ds.compress_sequentially(model, batches, choices, target=target, rows=ROWS, folding=EVERY).network


def chosen(
    statistics: ds.Statistics, layouts: Iterable[HeadLayout], share: float, *, weighted: bool
) -> dict[str, ds.LayerChoice]:
    """Return how each is narrowed at its turn: to the same sizes as `narrowed`."""
    method = ds.Method.HEADS_WEIGHTED if weighted else ds.Method.HEADS
    return {one.output: ds.LayerChoice(method, int(share * one.size), attention=statistics) for one in layouts}


def rows(model: Any, batches: Iterable[Any], scores: Scores) -> Iterator[str]:
    """Yield the lines of the table in Markdown, each as soon as it is known."""
    structure = Structure.of(model, next(iter(batches)))
    layouts = [structure.heads_of(OUTPUT.format(block)) for block in range(model.config.num_hidden_layers)]
    watched = [layer for layout in layouts for layer in layout.layers]
    statistics = ds.accumulate(model, batches, ds.watch(model, watched, gradients=watched), rows=FELT)

    def cell(replacements: Mapping[str, Any]) -> str:
        return scored(ds.compress(model, replacements, example=structure))

    def scored(small: nn.Module) -> str:
        left = sum(_weights(small, name) for name in watched) / sum(_weights(model, name) for name in watched)
        cosine, same = scores(small)
        return f"{cosine:.3f}, {same:.0%} ({left:.1%})"

    yield from head("the attention layers' weights", BUDGETS)
    for method in PAIRS:
        cells = (cell(plain(statistics, method, share)) for share in BUDGETS)
        yield f"| {method.label}, a pair for each layer | " + " | ".join(cells) + " |"
    for weighted, words in ((False, ""), (True, ", weighted")):
        cells = (cell(narrowed(statistics, layouts, share, weighted=weighted)) for share in BUDGETS)
        yield f"| heads of fewer dimensions{words} | " + " | ".join(cells) + " |"
    for weighted, target in itertools.product((False, True), ("outputs", "stream")):
        choices = (chosen(statistics, layouts, share, weighted=weighted) for share in BUDGETS)
        cells = (scored(in_turn(model, batches, one, target)) for one in choices)
        words = (", towards the stream" if target == "stream" else "") + (", weighted" if weighted else "")
        yield f"| heads of fewer dimensions, layer after layer{words} | " + " | ".join(cells) + " |"


def _weights(model: nn.Module, name: str) -> int:
    return sum(parameter.numel() for parameter in model.get_submodule(name).parameters() if parameter.ndim > 1)


if __name__ == "__main__":
    print_table(rows)
