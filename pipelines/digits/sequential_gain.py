"""What compressing layer after layer gains over compressing all layers at once, at the same ranks.

    python pipelines/digits/sequential_gain.py [SEED ...]

Two networks on the handwritten digits: the one of `run.toml`, `fc6` and `fc7` compressed from its 300 digits, and a
plain stack of eight dense layers, of which all but the last are compressed from 1,000 digits that it was trained on.
Each figure is measured on digits that neither trained nor solved anything: accuracy, and ||Y - Y~|| / ||Y - b|| of the
class scores. Networks that are trained already (`runs/digits-seed<N>`) are not trained again.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.workflow.config import load_config
from dalr_stream.workflow.project import Project
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.solve import factor_by

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from digits_data import Batches, target_test, target_train  # noqa: E402
from digits_training import accuracy  # noqa: E402

RUN_FILE = HERE / "run.toml"
EVERY = ds.Folding(ds.HoldoutRule(0.0))
"""The test digits measure: none of the others is kept apart."""
DEEP_SAMPLES, DEEP_WIDTH, DEEP_LAYERS = 1000, 128, 8
AtRank = Callable[[int], nn.Module]
METHODS = (ds.Method.DALR_ANCHORED_AFFINE, ds.Method.SVD)


@dataclass(frozen=True, slots=True)
class Case:
    """A trained network, what it is solved from and judged on."""

    name: str
    model: nn.Module
    layers: tuple[str, ...]
    """Those that are compressed."""
    last: str
    """The layer that gives the class scores."""
    train: Batches
    test: Batches
    ridge: ds.Ridge
    """Of both ways. In turn the fit has more freedom, and 300 samples of 768 features want more than 1e-3 of it."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One network on the test digits."""

    accuracy: float
    error: float
    """Relative, of the class scores."""


def main(seeds: Sequence[int]) -> None:
    """Print a table for each network."""
    for make, ranks in ((trained_run, (8, 16, 24, 32)), (trained_stack, (4, 8, 12, 16, 24, 32))):
        print(table([make(seed) for seed in seeds], ranks), end="\n\n")


def trained_run(seed: int) -> Case:
    """Give the network of `run.toml`, trained or found trained."""
    config = load_config(RUN_FILE, [f"run.seed={seed}", f'run.output="../../runs/digits-seed{seed}"'])
    project = Project(config, RUN_FILE.parent)
    Run(project).train()
    train, test = target_train(seed=seed), target_test(seed=seed)
    return Case("fc6 + fc7", project.network, ("fc6", "fc7"), "fc8", train, test, ds.Ridge.relative(0.1))


def trained_stack(
    seed: int, *, samples: int = DEEP_SAMPLES, width: int = DEEP_WIDTH, depth: int = DEEP_LAYERS, epochs: int = 30
) -> Case:
    """Give a stack of dense layers with ReLU between them, trained by AdamW on ``samples`` digits."""
    train, test = target_train(seed=seed, samples=samples), target_test(seed=seed, samples=samples)
    widths = [train.inputs[0].numel(), *[width] * (depth - 1), 10]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _stack(widths)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(samples).split(100):
                optimiser.zero_grad()
                functional.cross_entropy(model(train.inputs[rows]), train.labels[rows]).backward()
                optimiser.step()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    title, ridge = f"{depth - 1} of {depth} dense layers", ds.Ridge.relative(1e-3)
    return Case(title, model.eval(), tuple(names[:-1]), names[-1], train, test, ridge)


def at_once(case: Case, method: ds.Method) -> AtRank:
    """Compress every layer from the original's statistics: solved once, for every rank."""
    layers = ds.select_layers(case.model, case.layers)
    moments = ds.accumulate_stream(case.model, case.train, layers, folding=EVERY)
    factors = {
        name: factor_by(method, *ds.weights_of(case.model, name), moments[name], case.ridge) for name in case.layers
    }
    return lambda rank: ds.compress(case.model, {name: found.at_rank(rank) for name, found in factors.items()})


def in_turn(case: Case, method: ds.Method) -> AtRank:
    """Compress each layer in the network as compressed so far: anew for each rank."""

    def compressed(rank: int) -> nn.Module:
        choices = dict.fromkeys(case.layers, ds.LayerChoice(method, rank, case.ridge))
        return ds.compress_sequentially(case.model, case.train, choices, folding=EVERY).network

    return compressed


def judged(case: Case, network: nn.Module) -> Figures:
    """Measure a compressed network."""
    error = ds.output_errors(case.model, network, case.test, [case.last])[case.last]
    return Figures(accuracy(network, case.test), error)


def table(cases: Sequence[Case], ranks: Iterable[int]) -> str:
    """Return, in Markdown, the mean over the cases at each rank: accuracy in per cent, error of the class scores."""
    dalr, svd = METHODS
    columns = {
        "SVD": [at_once(case, svd) for case in cases],
        "DALR at once": [at_once(case, dalr) for case in cases],
        "DALR in turn": [in_turn(case, dalr) for case in cases],
    }
    whole = statistics.mean(accuracy(case.model, case.test) for case in cases)
    lines = [f"| {cases[0].name}: {100 * whole:.1f} % uncompressed | " + " | ".join(columns) + " | better in turn |"]
    lines.append("|---|" + "---:|" * (len(columns) + 1))
    for rank in ranks:
        found = {
            name: [judged(case, at_rank(rank)) for case, at_rank in zip(cases, networks, strict=True)]
            for name, networks in columns.items()
        }
        pairs = zip(found["DALR at once"], found["DALR in turn"], strict=True)
        better = sum(now.error < before.error for before, now in pairs)
        cells = " | ".join(map(_cell, found.values()))
        lines.append(f"| rank {rank} | {cells} | {better} of {len(cases)} |")
    return "\n".join(lines)


def _cell(found: Sequence[Figures]) -> str:
    right, error = (statistics.mean(values) for values in ((f.accuracy for f in found), (f.error for f in found)))
    return f"{100 * right:.1f} %, {error:.3f}"


def _stack(widths: Sequence[int]) -> nn.Sequential:
    """Return it with He initialisation: at torch's own default so deep a stack learns nothing."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [linear := nn.Linear(inputs, outputs), nn.ReLU()]
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
    return nn.Sequential(*layers[:-1])


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
