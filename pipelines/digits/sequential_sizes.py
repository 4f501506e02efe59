"""Which sizes, and in which order: the two deeper networks of `sequential_gain.py`, each way with either sizes.

    python pipelines/digits/sequential_sizes.py [SEED ...]

Sizes are those of the largest retention common to all layers, as in `sequential_gain.py`, or those that `ds.sizes`
finds among factor pairs by the divergence of the class scores on 128 training digits, for the same share of the same
weights. All layers at once, layer after layer, and layer after layer towards the residual stream where there is one;
the default ridge. Accuracy on the test digits.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence

from torch import nn

import dalr_stream as ds
from dalr_stream.network import accuracy
from sequential_gain import DALR, DEFAULT, EVERY, Case, Sizes, deeper, dense_stack, residual

TABLES: dict[str, tuple[Callable[[int], Case], tuple[float, ...]]] = {
    "residual net, 10 convolutions": (lambda seed: deeper(residual, seed), (0.75, 0.50, 0.25)),
    "8 dense layers": (lambda seed: deeper(dense_stack, seed), (0.50, 0.25, 0.10)),
}
"""How each network is made from a seed, and which shares of its parameters are to be left."""


def by_measuring(case: Case, share: float) -> dict[str, int]:
    """Return the ranks that `ds.sizes` finds for the share, of the layers that change."""
    distance = ds.OutputDistance(case.model, case.train, distance="kl")
    plan = ds.sizes(case.model, case.statistics, distance, share, layers=case.names[:-1], methods=[DALR])
    return {name: record.down.shape[0] for name, record in plan.replacements.items()}


def towards(case: Case, sizes: Sizes, target: str) -> nn.Module:
    """Compress each layer in the network as compressed so far, towards its outputs or towards the stream."""
    choices = {name: ds.LayerChoice(DALR, size) for name, size in sizes.items()}
    return ds.compress_sequentially(case.model, case.train, choices, target=target, folding=EVERY).network


def ways(case: Case) -> dict[str, Callable[[Sizes], nn.Module]]:
    """Return what is done at some sizes, by name; no stream without a convolution."""
    found: dict[str, Callable[[Sizes], nn.Module]] = {
        "at once": lambda sizes: case.at_once(sizes, DEFAULT),
        "in turn": lambda sizes: towards(case, sizes, "outputs"),
    }
    if any(isinstance(module, nn.Conv2d) for module in case.model.modules()):
        found["towards the stream"] = lambda sizes: towards(case, sizes, "stream")
    return found


def table(title: str, cases: Sequence[Case], shares: Sequence[float]) -> str:
    """Return the means over the cases in Markdown."""
    rules: dict[str, Callable[[Case, float], Sizes]] = {"common retention": Case.sizes, "`ds.sizes`": by_measuring}
    names = list(ways(cases[0]))
    whole = statistics.mean(accuracy(case.model, case.test) for case in cases)
    lines = [f"| {title}: {100 * whole:.1f} % uncompressed | parameters left | {' | '.join(names)} |"]
    lines.append("|---|" + "---:|" * (1 + len(names)))
    for share in shares:
        for words, rule in rules.items():
            sizes = [rule(case, share) for case in cases]
            networks = [
                [way(own) for way in ways(case).values()] for case, own in zip(cases, sizes, strict=True)
            ]  # by case, then by way
            left = statistics.mean(case.left(small[0]) for case, small in zip(cases, networks, strict=True))
            scores = [
                statistics.mean(accuracy(small[way], case.test) for case, small in zip(cases, networks, strict=True))
                for way in range(len(names))
            ]
            cells = " | ".join(f"{100 * score:.1f} %" for score in scores)
            lines.append(f"| {words} | {100 * left:.1f} % | {cells} |")
    return "\n".join(lines)


def main(seeds: Sequence[int]) -> None:
    """Print a table for each network."""
    for title, (make, shares) in TABLES.items():
        print(table(title, [make(seed) for seed in seeds], shares), end="\n\n", flush=True)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
