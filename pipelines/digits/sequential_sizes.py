"""Which sizes, and in which order: the two deeper networks of `sequential_gain.py`, each way with either sizes.

    python pipelines/digits/sequential_sizes.py [SEED ...]

Sizes are those of the largest retention common to all layers, as in `sequential_gain.py`, or those that `ds.sizes`
finds among factor pairs by the divergence of the class scores on 128 training digits, for the same share of the same
weights: once measured with all layers at once, and once with the layers compressed the way they then are. All layers at
once, layer after layer, and layer after layer towards the residual stream where there is one; the default ridge.
Accuracy on the test digits, the KL divergence of the class scores there from the original's, in nats, and what is left
of the parameters.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from torch import nn

import dalr_stream as ds
from dalr_stream.network import accuracy
from sequential_gain import DALR, DEFAULT, EVERY, Case, Sizes, deeper, dense_stack, residual

TABLES: dict[str, tuple[Callable[[int], Case], tuple[float, ...]]] = {
    "residual net, 10 convolutions": (lambda seed: deeper(residual, seed), (0.75, 0.50, 0.25)),
    "8 dense layers": (lambda seed: deeper(dense_stack, seed), (0.50, 0.25, 0.10)),
}
"""How each network is made from a seed, and which shares of its parameters are to be left."""
Way = Callable[[Case, Sizes], nn.Module]
"""How a network is compressed at some sizes."""


def at_once(case: Case, sizes: Sizes) -> nn.Module:
    """Compress every layer from the original's statistics."""
    return case.at_once(sizes, DEFAULT)


def in_turn(case: Case, sizes: Sizes) -> nn.Module:
    """Compress each layer in the network as compressed so far, towards its outputs in the original."""
    return _turned(case, sizes, "outputs")


def towards_stream(case: Case, sizes: Sizes) -> nn.Module:
    """Compress each layer towards that and what the residual stream has lost."""
    return _turned(case, sizes, "stream")


def _turned(case: Case, sizes: Sizes, target: str) -> nn.Module:
    choices = {name: ds.LayerChoice(DALR, size) for name, size in sizes.items()}
    return ds.compress_sequentially(case.model, case.train, choices, target=target, folding=EVERY).network


WAYS: dict[str, Way] = {"at once": at_once, "in turn": in_turn, "towards the stream": towards_stream}


def measured(case: Case, share: float, way: Way) -> Sizes:
    """Return the ranks that `ds.sizes` finds for the share, of networks that are compressed this way."""

    def build(choices: Mapping[str, ds.LayerChoice]) -> nn.Module:
        return way(case, {name: choice.size for name, choice in choices.items()})

    plan = ds.sizes(
        case.model,
        case.statistics,
        ds.OutputDistance(case.model, case.train, distance="kl"),
        share,
        layers=case.names[:-1],
        methods=[DALR],
        in_turn=None if way is at_once else build,
    )
    return {name: choice.size for name, choice in plan.choices.items()}


RULES: dict[str, Callable[[Case, float, Way], Sizes]] = {
    "common retention": lambda case, share, _: case.sizes(share),
    "`ds.sizes`, measured at once": lambda case, share, _: measured(case, share, at_once),
    "`ds.sizes`, measured as used": measured,
}


def ways_of(case: Case) -> dict[str, Way]:
    """Return what is done at some sizes, by name; no stream without a convolution."""
    streams = any(isinstance(module, nn.Conv2d) for module in case.model.modules())
    return {words: way for words, way in WAYS.items() if streams or way is not towards_stream}


def table(title: str, cases: Sequence[Case], shares: Sequence[float]) -> str:
    """Return the means over the cases in Markdown: accuracy, divergence, and the share of the parameters left."""
    ways = ways_of(cases[0])
    whole = statistics.mean(accuracy(case.model, case.test) for case in cases)
    lines = [f"| {title}: {100 * whole:.1f} % uncompressed | of the layers' weights | {' | '.join(ways)} |"]
    lines.append("|---|" + "---:|" * (1 + len(ways)))
    for share in shares:
        for words, rule in RULES.items():
            cells = [cell([(case, way(case, rule(case, share, way))) for case in cases]) for way in ways.values()]
            lines.append(f"| {words} | {share:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(found: Sequence[tuple[Case, nn.Module]]) -> str:
    """Return the means over compressed networks: accuracy, divergence, and the parameters that they have left."""
    score = statistics.mean(accuracy(small, case.test) for case, small in found)
    apart = statistics.mean(case.divergence(small) for case, small in found)
    left = statistics.mean(case.left(small) for case, small in found)
    return f"{100 * score:.1f} %, {apart:.4f} nats ({100 * left:.1f} %)"


def main(seeds: Sequence[int]) -> None:
    """Print a table for each network."""
    for title, (make, shares) in TABLES.items():
        print(table(title, [make(seed) for seed in seeds], shares), end="\n\n", flush=True)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
