"""The encoder's feed-forward layers at the same share of each: all at once, layer after layer, towards the stream.

    python pipelines/sentences/sentences_in_turn.py

No labels and no fine-tuning. Factor pairs of every layer, or fewer nodes between the two of each block; at last the mix
of both at the sizes that `ds.sizes` finds, all at once and in turn. All 400 sentences decide; scores are those of
`sentences_budgets.py`, on sentences that nothing else has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

import dalr_stream as ds
from sentences_budgets import BUDGETS, FELT, LAYERS, ROWS, Scores, head, plain, print_table

EVERY = ds.Folding(ds.HoldoutRule(0.0))
METHODS = (
    ds.Method.DALR_ANCHORED_AFFINE,
    ds.Method.DALR_WEIGHTED_AFFINE,
    ds.Method.SPECTRAL,
    ds.Method.SPECTRAL_WEIGHTED,
)


def choices(statistics: ds.Statistics, method: ds.Method, share: float) -> dict[str, ds.LayerChoice]:
    """Return the sizes of `plain`: a share of the break-even rank, or of the nodes of layers that may lose some."""
    found: dict[str, ds.LayerChoice] = {}
    for name, layer in statistics.items():
        m, d = layer.weight.shape
        known = layer if method.weighted else None
        if method.family is ds.numerics.Family.LOW_RANK:
            found[name] = ds.LayerChoice(method, int(share * m * d / (m + d)), layer=known)
        elif layer.nodes is not None:
            found[name] = ds.LayerChoice(method, int(share * m), layer=known)
    return found


def rows(model: nn.Module, batches: Iterable[Any], scores: Scores) -> Iterator[str]:
    """Yield the lines of the table in Markdown, each as soon as it is known."""
    layers = ds.watch(model, LAYERS, example=next(iter(batches)), gradients=LAYERS)
    statistics = ds.accumulate(model, batches, layers, rows=FELT, folding=EVERY)

    def at_once(method: ds.Method, share: float) -> nn.Module:
        return ds.compress(model, plain(statistics, method, share), example=layers.structure)

    def in_turn(chosen: Mapping[str, ds.LayerChoice], target: str = "outputs") -> nn.Module:
        return ds.compress_sequentially(model, batches, chosen, target=target, rows=ROWS, folding=EVERY).network

    def same_share(method: ds.Method, share: float, target: str = "outputs") -> nn.Module:
        return in_turn(choices(statistics, method, share), target)

    ways: dict[str, Callable[[ds.Method, float], nn.Module]] = {
        "all at once": at_once,
        "layer after layer": same_share,
        "layer after layer, towards the stream": lambda method, share: same_share(method, share, "stream"),
    }
    yield from head("the feed-forward layers' weights", BUDGETS)
    for method in METHODS:
        for words, way in ways.items():
            yield line(f"{method.label}, {words}", [scores(way(method, share)) for share in BUDGETS])
    distance = ds.OutputDistance(model, batches, rows=ROWS)
    plans = ds.sizes(model, statistics, distance, BUDGETS, structure=layers.structure)
    mixed = "`ds.sizes`, both families, plain and weighted"
    whole = [ds.compress(model, plan.replacements, example=layers.structure) for plan in plans]
    yield line(f"{mixed}, all at once", [scores(small) for small in whole])
    mended = [in_turn(plan.choices, "stream") for plan in plans]
    yield line("the same sizes, layer after layer, towards the stream", [scores(small) for small in mended])


def line(words: str, found: Sequence[tuple[float, float]]) -> str:
    """Return one line of the table."""
    return f"| {words} | " + " | ".join(f"{cosine:.3f}, {same:.0%}" for cosine, same in found) + " |"


if __name__ == "__main__":
    print_table(rows)
