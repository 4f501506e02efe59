"""MGM's feed-forward layers at half, all at once and in turn: perplexity of what decided, and of what nothing has seen.

    python pipelines/real_networks/seen_and_unseen.py

The same share of each layer, as factor pairs, from two numbers of communities. In turn each layer is fitted to what it
reads in the network as compressed so far; the more it is fitted to, the more the two columns differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import nn

import budgets
import dalr_stream as ds

METHOD = ds.Method.DALR_ANCHORED_AFFINE
SHARE = 0.5
CASES = ((480, 1e-3), (480, 0.1), (1920, 1e-3))
"""Communities, and the ridge."""


def ranks(statistics: ds.Statistics, ridge: float) -> dict[str, ds.LayerChoice]:
    """Return the rank of each layer that has so much of its weights."""
    shapes = {name: layer.weight.shape for name, layer in statistics.items()}
    return {name: ds.LayerChoice(METHOD, int(SHARE * m * d / (m + d)), ridge=ridge) for name, (m, d) in shapes.items()}


def networks(case: budgets.Case, ridge: float) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network of each way to compress it."""
    rows = ds.RowRule(mask=case.rows.mask)
    statistics = ds.accumulate(
        case.network, case.batches, ds.watch(case.network, case.layers), rows=rows, folding=budgets.EVERY
    )
    chosen = ranks(statistics, ridge)

    def at_once(choices: Mapping[str, ds.LayerChoice]) -> nn.Module:
        replaced = {
            name: ds.solve(statistics[name], METHOD, ridge=ridge).at_rank(int(choice.size))
            for name, choice in choices.items()
        }
        return ds.compress(case.network, replaced)

    def in_turn(target: str) -> Callable[[Mapping[str, ds.LayerChoice]], nn.Module]:
        return lambda choices: (
            ds.compress_sequentially(
                case.network, case.batches, choices, target=target, rows=rows, folding=budgets.EVERY
            ).network
        )

    ways = {"all at once": at_once, "in turn": in_turn("outputs"), "in turn, towards the stream": in_turn("stream")}
    for words, way in ways.items():
        yield words, way(chosen)


def lines() -> Iterator[str]:
    """Yield the lines of the table in Markdown, each as soon as it is known."""
    yield f"| MGM at {SHARE:.0%} | communities | ridge | of these | of 160 others |"
    yield "|---|---:|---:|---:|---:|"
    for samples, ridge in CASES:
        case = budgets.microbiome(samples)
        for words, small in networks(case, ridge):
            seen, unseen = case.said(small, case.batches), case.said(small)
            yield f"| {words} | {samples:,} | {ridge:g} | {seen} | {unseen} |"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
