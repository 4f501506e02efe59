"""LeNet before and after: DALR as published and truncated SVD, at the authors' ranks and lambda.

    python pipelines/lenet/lenet_comparison.py [SEED ...] [--data mnist]

Five seeds by default. All three dense layers are compressed at once, and nothing is fine-tuned, as in the authors'
example. Rank 10 is `fc3`'s full rank: its factors take more parameters than the layer, which the example accepts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from torch import nn  # noqa: E402

import dalr_stream as ds  # noqa: E402
from dalr_stream.errors import ParameterIncreaseWarning  # noqa: E402
from dalr_stream.network import accuracy, parameter_count  # noqa: E402
from labelled_batches import Batches  # noqa: E402
from lenet_data import rows_for_test, rows_for_training  # noqa: E402
from lenet_network import build, train  # noqa: E402

RANKS = {"fc1": 15, "fc2": 15, "fc3": 10}
RIDGE = ds.Ridge.absolute(10.0)


def compressed(network: nn.Module, rows: Batches) -> dict[str, nn.Module]:
    """Return the network compressed by truncated SVD, and by DALR as published from the statistics of `rows`."""
    layers = ds.watch(network, list(RANKS))
    found = ds.accumulate(network, rows, layers, folding=ds.Folding(holdout=ds.HoldoutRule(0.0)))
    small = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        for name in ("SVD", "DALR"):
            pairs = {}
            for layer, rank in RANKS.items():
                if name == "SVD":
                    factors = ds.truncated_svd(found[layer])
                else:
                    factors = ds.dalr(found[layer], ridge=RIDGE, variant="published", affine=False)
                pairs[layer] = factors.at_rank(rank)
            small[name] = ds.compress(network, pairs).eval()
    return small


def measure(seed: int, data: str, epochs: int = 30) -> dict[str, tuple[int, float]]:
    """Train one LeNet; return parameters and test accuracy in percent, of it and of what was made of it."""
    network = build(data=data)
    train(network, seed=seed, report=lambda _: None, data=data, epochs=epochs)
    networks = {"uncompressed": network, **compressed(network, rows_for_training(seed=seed, data=data))}
    test = rows_for_test(seed=seed, data=data)
    return {name: (parameter_count(one), 100 * accuracy(one, test)) for name, one in networks.items()}


def table(found: Sequence[dict[str, tuple[int, float]]]) -> str:
    """Return a row for each network: parameters, and accuracy over the seeds."""
    lines = ["| network | parameters | test accuracy (%) |", "|---|---:|---:|"]
    for name, (count, _) in found[0].items():
        values = [one[name][1] for one in found]
        deviation = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {count:,} | {statistics.mean(values):.1f}{deviation} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    asked = parser.parse_args(arguments)
    print(table([measure(seed, asked.data) for seed in asked.seeds]))


if __name__ == "__main__":
    main(sys.argv[1:])
