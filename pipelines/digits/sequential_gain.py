"""What compressing layer after layer gains over compressing all layers at once, at the same sizes.

    python pipelines/digits/sequential_gain.py [SEED ...]

Three networks on the handwritten digits, compressed whole but for the layer that gives the class scores: the one of
`run.toml`, convolutions included, by DALR and by selection (MoMaSP, node form), from its 300 digits; a residual net of
ten convolutions and a stack of eight dense layers, by DALR, from the 1,000 digits that they were trained on.

Sizes are those of the largest retention common to all layers of the original that keeps within a share of the network's
parameters; both ways get the same. Each way gets the ridge of `RIDGES` with the smallest error on 200 digits kept for
that. Figures are of all digits that are left: accuracy, and ||Y - Y~|| / ||Y - b|| of the class scores. Digits networks
that are trained already (`runs/digits-seed<N>`) are not trained again.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import dalr_stream as ds
from dalr_stream.network import Replacement, Structure, accuracy, parameter_count
from dalr_stream.numerics import LayerShape, SizedLayer, as_they_are, by_energy, factor_layer, selection_layer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from deeper_networks import dense_stack, residual  # noqa: E402
from digits_data import TARGET_SAMPLES, Batches, target_test, target_train, target_validation  # noqa: E402
from digits_trained import trained  # noqa: E402

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Relative: of DALR, or of the matrix that restores pruned nodes. The first is the default, and decides sizes."""
DEFAULT = RIDGES[0]
VALIDATION, DEEP_SAMPLES = 200, 1000
DALR, SELECTION = ds.Method.DALR_ANCHORED_AFFINE, ds.Method.MOMASP_NODE
STEPS = 24
"""Of the bisection on the retention: finer than one node or rank."""
EVERY = ds.Folding(ds.HoldoutRule(0.0))
"""Other digits measure: none of these is kept apart."""
Sizes = Mapping[str, int]
Solution = ds.LowRankFactors | ds.ChannelSelection


@dataclass(frozen=True)
class Case:
    """A trained network, how it is compressed and from what, and what it is judged on."""

    model: nn.Module
    method: ds.Method
    train: Batches
    validation: Batches
    test: Batches
    source: Batches | None = None
    """For a selection."""

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Every convolution and dense layer; the last gives the class scores, and stays."""
        return tuple(name for name, kind in self.model.named_modules() if isinstance(kind, nn.Conv2d | nn.Linear))

    @functools.cached_property
    def structure(self) -> Structure:
        """Which of the network's channels are coupled."""
        return Structure.of(self.model, next(iter(self.train)))

    @functools.cached_property
    def statistics(self) -> ds.Statistics:
        """Every layer with its moments in the original network, on the target."""
        return self._statistics(self.train)

    @functools.cached_property
    def source_statistics(self) -> ds.Statistics:
        """The same on the source."""
        assert self.source is not None  # noqa: S101  # for the type checker: there is one for a selection
        return self._statistics(self.source)

    @functools.cached_property
    def solutions(self) -> dict[float, dict[str, Solution]]:
        """What is solved for each layer from these, by ridge."""
        return {ridge: {name: self._solved(name, ridge) for name in self.names[:-1]} for ridge in RIDGES}

    @functools.cached_property
    def sized(self) -> list[SizedLayer]:
        """What every layer loses at each size."""
        return [self._sized(spec) for spec in ds.network.select_layers(self.model, self.names[:-1])]

    def sizes(self, share: float) -> dict[str, int]:
        """Return the sizes of the largest common retention within the share, but of layers that stay as they are."""
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            fits = self.left(self.at_once(self._keeping(middle), DEFAULT)) <= share
            low, high = (middle, high) if fits else (low, middle)
        return self._keeping(low)

    def left(self, network: nn.Module) -> float:
        """Return the share of the parameters that a compressed network has."""
        return parameter_count(network) / parameter_count(self.model)

    def divergence(self, network: nn.Module) -> float:
        """Return the mean divergence of a network's class scores from the original's, on all test digits."""
        every = sum(len(labels) for _, labels in self.test)
        return ds.OutputDistance(self.model, self.test, samples=every, distance="kl")(network)

    def at_once(self, sizes: Sizes, ridge: float) -> nn.Module:
        """Compress every layer from the original's statistics."""
        chosen: dict[str, Replacement] = {}
        for name, size in sizes.items():
            found = self.solutions[ridge][name]
            factors = isinstance(found, ds.LowRankFactors)
            chosen[name] = found.at_rank(size) if factors else found.at_size(size, ridge=ridge)
        return ds.compress(self.model, chosen, example=self.structure)

    def in_turn(self, sizes: Sizes, ridge: float) -> nn.Module:
        """Compress each layer in the network as compressed so far."""
        choices = {
            name: ds.LayerChoice(self.method, size, ds.Ridge.relative(ridge), restore_ridge=ridge)
            for name, size in sizes.items()
        }
        return ds.compress_sequentially(self.model, self.train, choices, source=self.source, folding=EVERY).network

    def error(self, network: nn.Module, batches: Batches) -> float:
        """Return the relative error of the class scores."""
        last = self.names[-1]
        return ds.output_errors(self.model, network, batches, [last])[last]

    def _statistics(self, batches: Batches) -> ds.Statistics:
        layers = ds.watch(self.model, self.names[:-1], example=self.structure)
        return ds.accumulate(self.model, batches, layers, folding=EVERY)

    def _solved(self, name: str, ridge: float) -> Solution:
        layer = self.statistics[name]
        if self.method is DALR:
            return ds.dalr(layer, ridge=ridge)
        return ds.solve(layer, self.method, source=self.source_statistics[name])

    def _sized(self, layer: ds.network.LayerSpec) -> SizedLayer:
        found = self.solutions[DEFAULT][layer.name]
        if isinstance(found, ds.LowRankFactors):
            return factor_layer(layer.name, found, self.statistics.moments(layer.name))
        return selection_layer(layer.name, found, LayerShape(layer.outputs, layer.inputs))

    def _keeping(self, retention: float) -> dict[str, int]:
        whole, found = as_they_are(self.sized), by_energy(self.sized, retention)
        return {name: size for name, size in found.items() if size != whole[name]}


@dataclass(frozen=True, slots=True)
class Figures:
    """One way of compressing a network, on the test digits."""

    accuracy: float
    error: float
    """Relative, of the class scores; with the ridge that validation chose, as the accuracy."""
    by_default: float
    """The same with the default ridge."""


def judged(case: Case, sizes: Sizes, way: Callable[[Sizes, float], nn.Module]) -> Figures:
    """Compress with every ridge, and measure the network that validation prefers."""
    networks = {ridge: way(sizes, ridge) for ridge in RIDGES}
    best = min(networks.values(), key=lambda network: case.error(network, case.validation))
    return Figures(accuracy(best, case.test), case.error(best, case.test), case.error(networks[DEFAULT], case.test))


def digits_network(method: ds.Method, seed: int) -> Case:
    """Give the network of `run.toml`, trained or found trained."""
    run = trained(seed)
    source = None if method is DALR else run.batches("source")
    return Case(run.network, method, *split(seed, TARGET_SAMPLES), source)


def deeper(trained_on: Callable[..., nn.Module], seed: int) -> Case:
    """Train one of the deeper networks."""
    train, *others = split(seed, DEEP_SAMPLES)
    return Case(trained_on(train, seed=seed), DALR, train, *others)


def split(seed: int, samples: int) -> tuple[Batches, Batches, Batches]:
    """Give the digits to train on, to choose the ridge on and to judge on: disjoint, all there are."""
    apart = {"seed": seed, "samples": samples, "validation": VALIDATION}
    return target_train(seed=seed, samples=samples), target_validation(**apart), target_test(**apart)


TABLES: dict[str, tuple[Callable[[int], Case], tuple[float, ...]]] = {
    "digits network, DALR": (functools.partial(digits_network, DALR), (0.25, 0.10, 0.05)),
    "digits network, selection": (functools.partial(digits_network, SELECTION), (0.25, 0.10, 0.05)),
    "residual net, DALR": (functools.partial(deeper, residual), (0.75, 0.50, 0.25)),
    "dense stack, DALR": (functools.partial(deeper, dense_stack), (0.50, 0.25, 0.10)),
}
"""How each network is made from a seed, and which shares of its parameters are to be left."""


def table(title: str, cases: Sequence[Case], shares: Sequence[float]) -> str:
    """Return the means over the cases in Markdown, and on how many of them the error is smaller in turn."""
    whole = statistics.mean(accuracy(case.model, case.test) for case in cases)
    columns = ("at once", "in turn", "better in turn", f"at once, ridge {DEFAULT}", "in turn")
    lines = [
        f"| {title}: {_percent(whole)} uncompressed | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for share in shares:
        sizes = [case.sizes(share) for case in cases]
        left = statistics.mean(case.left(case.at_once(own, DEFAULT)) for case, own in zip(cases, sizes, strict=True))
        before, after = (
            [judged(case, own, getattr(case, way)) for case, own in zip(cases, sizes, strict=True)]
            for way in ("at_once", "in_turn")
        )
        better = sum(now.error < then.error for then, now in zip(before, after, strict=True))
        cells = f"{_cell(before)} | {_cell(after)} | {better} of {len(cases)} | {_default(before)} | {_default(after)}"
        lines.append(f"| {_percent(left)} of the parameters | {cells} |")
    return "\n".join(lines)


def _cell(found: Sequence[Figures]) -> str:
    right, error = (statistics.mean(values) for values in ([f.accuracy for f in found], [f.error for f in found]))
    return f"{_percent(right)}, {error:.3f}"


def _default(found: Sequence[Figures]) -> str:
    return f"{statistics.mean(one.by_default for one in found):.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def main(seeds: Sequence[int]) -> None:
    """Print a table for each network."""
    for title, (make, shares) in TABLES.items():
        print(table(title, [make(seed) for seed in seeds], shares), end="\n\n", flush=True)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
