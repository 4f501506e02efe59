"""Channels within the blocks of a residual net: all at once, layer after layer, and towards the residual stream.

    python pipelines/digits/sequential_channels.py [SEED ...]

Of each of the four blocks the first convolution keeps the same share of its channels, by spectral pruning on the 1,000
digits that the network was trained on, and the second one reads those. All at once and layer after layer the channels
that went are restored from those kept; towards the stream the second convolution is solved for what its block adds to
the stream. Accuracy on the test digits, and the divergence of their class scores from the original's, in nats.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

from torch import nn

import dalr_stream as ds
from dalr_stream.network import accuracy
from sequential_gain import EVERY, Case, deeper, residual

METHOD = ds.Method.SPECTRAL
SHARES = (0.75, 0.5, 0.25)


def channels(case: Case, share: float) -> dict[str, int]:
    """Return how many channels each block keeps within, by layer."""
    layers = ds.watch(case.model, list(case.names), example=next(iter(case.train)))
    inner = [layer for layer in layers if layer.group is not None and len(layer.group.producers) == 1]
    return {layer.name: int(share * layer.group.channels) for layer in inner if layer.name.endswith("first")}


def at_once(case: Case, kept: dict[str, int]) -> nn.Module:
    """Compress every block from the original's statistics."""
    solved = {name: ds.solve(case.statistics[name], METHOD).at_size(size, ridge=1e-3) for name, size in kept.items()}
    return ds.compress(case.model, solved, example=case.structure)


def in_turn(case: Case, kept: dict[str, int], target: str = "outputs") -> nn.Module:
    """Compress each block in the network as compressed so far."""
    choices = {name: ds.LayerChoice(METHOD, size) for name, size in kept.items()}
    return ds.compress_sequentially(case.model, case.train, choices, target=target, folding=EVERY).network


WAYS: dict[str, Callable[[Case, dict[str, int]], nn.Module]] = {
    "at once": at_once,
    "in turn": in_turn,
    "towards the stream": lambda case, kept: in_turn(case, kept, "stream"),
}


def rows(cases: Sequence[Case]) -> Iterator[str]:
    """Yield the lines of the table in Markdown: means over the cases."""
    whole = statistics.mean(accuracy(case.model, case.test) for case in cases)
    yield f"| channels kept within each block; {100 * whole:.1f} % uncompressed | left | {' | '.join(WAYS)} |"
    yield "|---:|" + "---:|" * (1 + len(WAYS))
    for share in SHARES:
        found = [[(case, way(case, channels(case, share))) for case in cases] for way in WAYS.values()]
        left = statistics.mean(case.left(small) for case, small in found[0])
        yield f"| {share:.0%} | {left:.0%} | {' | '.join(map(cell, found))} |"


def cell(found: Sequence[tuple[Case, nn.Module]]) -> str:
    """Return the mean accuracy and divergence of compressed networks."""
    score = statistics.mean(accuracy(small, case.test) for case, small in found)
    return f"{100 * score:.1f} %, {statistics.mean(case.divergence(small) for case, small in found):.3f}"


def main(seeds: Sequence[int]) -> None:
    """Print the table."""
    for line in rows([deeper(residual, seed) for seed in seeds]):
        print(line, flush=True)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
