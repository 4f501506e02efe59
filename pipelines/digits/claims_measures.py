"""What the papers claim, as numbers: each measure gives quantities of one seed, all from the same solved networks.

Accuracies are differences in points of a hundred, at the same rank or the same number of parameters. A *mean over
ranks* is over `RANKS`, which are spaced evenly in their logarithm as the papers' are. Statistics come from rows that no
accuracy is measured on; nothing is chosen by the test rows but the sizes at which a drop of one point begins.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

import dalr_stream as ds
from claims_networks import Domain
from dalr_stream.errors import FewSamplesWarning
from dalr_stream.network import Cut, PrefixCache, accuracy
from dalr_stream.numerics import LayerShape, relative_errors
from labelled_batches import Batches

Vector = NDArray[np.float64]
Quantities = dict[str, float]

LAYERS = ("fc6", "fc7")
READER = {"fc6": "fc7", "fc7": "fc8"}
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FINE_RANKS = (*range(2, 32, 2), *range(32, 64, 4), *range(64, 128, 8), *range(128, 257, 16))
"""Where a drop of one point is looked for."""
DROP = 0.01
HALF = 0.5
PICKS = (0, 16, 64)
"""Nodes chosen before the candidates are compared."""
CLOSE = 0.01
RESTORE_RIDGE = 1e-3
"""As in run files."""


@dataclass(frozen=True)
class Solved:
    """A network with its statistics and solutions, and accuracies that are measured once for each of them and size."""

    domain: Domain
    foreign: Mapping[str, ds.Moments]
    """What its layers read on the other domain's rows."""
    _known: dict[tuple[str, str, int], float] = field(default_factory=dict)

    @cached_property
    def statistics(self) -> Mapping[str, ds.Moments]:
        """What its layers read on its own rows for statistics."""
        return moments_of(self.domain.network, self.domain.statistics)

    @cached_property
    def test_statistics(self) -> Mapping[str, ds.Moments]:
        """The same on the rows it is judged on: these measure, and decide nothing."""
        return moments_of(self.domain.network, self.domain.test)

    @cached_property
    def baseline(self) -> float:
        """Accuracy of the uncompressed network."""
        return accuracy(self.domain.network, self.domain.test)

    @cached_property
    def low_rank(self) -> dict[str, dict[str, ds.LowRankFactors]]:
        """By layer and name, what the papers compare, and the package's default."""
        return {layer: low_rank(self.domain.network, layer, self.statistics) for layer in LAYERS}

    @cached_property
    def _structure(self) -> ds.network.Structure:
        return ds.network.Structure.of(self.domain.network, next(iter(self.domain.test)))

    @cached_property
    def _prefixes(self) -> dict[str, PrefixCache]:
        return {layer: PrefixCache(Cut(self.domain.network, layer)) for layer in LAYERS}

    def at(self, layer: str, name: str, solution: ds.LowRankFactors | ds.ChannelSelection, size: int) -> float:
        """Accuracy with one layer compressed; `name` tells the solutions of a layer apart."""
        key = (layer, name, size)
        if key not in self._known:
            if isinstance(solution, ds.LowRankFactors):
                small = ds.compress(self.domain.network, {layer: solution.at_rank(size)})
            else:
                kept = solution.at_size(size, ridge=RESTORE_RIDGE)
                small = ds.compress(self.domain.network, {layer: kept}, example=self._structure)
            self._known[key] = accuracy(self._prefixes[layer].attach(small.eval()), self.domain.test)
        return self._known[key]

    def curve(self, layer: str, name: str, factors: ds.LowRankFactors) -> Vector:
        """Accuracy at `RANKS`, those that add no parameters."""
        return np.array([self.at(layer, name, factors, rank) for rank in useful(factors)])

    def sufficient_rank(self, layer: str, name: str, factors: ds.LowRankFactors) -> float:
        """Smallest rank from which on no tried rank loses more than `DROP`; NaN where the last one does."""
        found = np.nan
        for rank in reversed([rank for rank in FINE_RANKS if rank <= factors.break_even_rank]):
            if self.at(layer, name, factors, rank) < self.baseline - DROP:
                break
            found = float(rank)
        return found

    def shape(self, layer: str) -> LayerShape:
        """Shape of the layer and of its reader."""
        (m, d), (c, _) = (ds.network.weights_of(self.domain.network, name)[0].shape for name in (layer, READER[layer]))
        return LayerShape(m, d, c)

    @cached_property
    def selections(self) -> dict[str, dict[str, ds.ChannelSelection]]:
        """By layer and name, spectral pruning and both forms of MoMaSP, against the other domain."""
        found = {}
        for layer, reader in READER.items():
            own, other = self.statistics[reader], self.foreign[reader]
            forms = {form.value: ds.momasp(own, other, form=form) for form in ds.numerics.Form}
            found[layer] = {"spectral": ds.spectral(own), **forms}
        return found


def low_rank(network: nn.Module, layer: str, statistics: Mapping[str, ds.Moments]) -> dict[str, ds.LowRankFactors]:
    """Solve a layer by each low-rank method, from the given statistics.

    300 rows for 768 features are few: `published` warns of that, and here it is what is being looked at.
    """
    (weight, bias), x = ds.network.weights_of(network, layer), statistics[layer]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        return {
            "SVD": ds.truncated_svd(weight, bias),
            "SVD + BC": ds.truncated_svd(weight, bias, x, compensate_bias=True),
            "DALR": ds.dalr(weight, bias, x, variant="published", affine=False),
            "DALR + BC": ds.dalr(weight, bias, x, variant="published", affine=False, compensate_bias=True),
            "DALR anchored affine": ds.dalr(weight, bias, x),
        }


def solve(source: Domain, target: Domain) -> tuple[Solved, Solved]:
    """Return both domains with their networks, each knowing its network's statistics on the other's rows."""
    return (
        Solved(source, moments_of(source.network, target.statistics)),
        Solved(target, moments_of(target.network, source.statistics)),
    )


def moments_of(network: nn.Module, rows: Batches) -> Mapping[str, ds.Moments]:
    """Moments of what the three dense layers read, on all of the rows."""
    layers = ds.watch(network, [*LAYERS, READER[LAYERS[-1]]])
    return ds.accumulate(network, rows, layers, folding=ds.Folding(holdout=ds.HoldoutRule(0.0))).by_stream


def useful(factors: ds.LowRankFactors) -> list[int]:
    """Return those of `RANKS` that add no parameters."""
    return [rank for rank in RANKS if rank <= factors.break_even_rank]


def activation_shift(source: Solved, target: Solved) -> Quantities:
    """DALR Fig. 2: share of a layer's inputs that carry half of the activations, by the network before the move."""
    del target
    found = {}
    for layer in LAYERS:
        for name, statistics in (("source", source.statistics), ("target", source.foreign)):
            share = half_share(statistics[layer].active_rate)
            found[f"{layer} inputs: share carrying half of the activations, {name} (%)"] = 100 * share
    return found


def half_share(rates: Vector) -> float:
    """Smallest share of the features that carries half of the activations."""
    carried = np.cumsum(np.sort(rates)[::-1])
    return (int(np.searchsorted(carried, HALF * carried[-1])) + 1) / rates.size


def dalr_over_svd(source: Solved, target: Solved) -> Quantities:
    """DALR 5.2 and 5.3: accuracy gained over SVD at the same rank, and parameters at a drop of one point."""
    found = {}
    for layer in LAYERS:
        for domain, solved in (("source", source), ("target", target)):
            solutions = solved.low_rank[layer]
            plain = solved.curve(layer, "SVD", solutions["SVD"])
            enough = solved.sufficient_rank(layer, "SVD", solutions["SVD"])
            for name in ("DALR", "DALR anchored affine"):
                gain = 100 * (solved.curve(layer, name, solutions[name]) - plain)
                found[f"{layer}, {domain}: {name} over SVD, mean over ranks (points)"] = float(gain.mean())
                for rank, value in zip(useful(solutions[name]), gain, strict=True):
                    found[f"{layer}, {domain}: {name} over SVD at rank {rank} (points)"] = float(value)
                ratio = enough / solved.sufficient_rank(layer, name, solutions[name])
                found[f"{layer}, {domain}: parameters of SVD over {name}, 1 point lost"] = ratio
    return found


def target_statistics(source: Solved, target: Solved) -> Quantities:
    """DALR 3: solving the target's network from the target's statistics or from the source's."""
    del source
    found = {}
    for layer in LAYERS:
        own, foreign = target.low_rank[layer], low_rank(target.domain.network, layer, target.foreign)
        for name in ("DALR", "DALR anchored affine"):
            other = f"{name} from the source"
            gain = 100 * (target.curve(layer, name, own[name]) - target.curve(layer, other, foreign[name]))
            found[f"{layer}: {name} from target over source statistics, mean over ranks (points)"] = float(gain.mean())
            ranks = [target.sufficient_rank(layer, *pair) for pair in ((other, foreign[name]), (name, own[name]))]
            found[f"{layer}: parameters of {name}, source over target statistics, 1 point lost"] = ranks[0] / ranks[1]
    return found


def bias_compensation(source: Solved, target: Solved) -> Quantities:
    """DALR 4.1 and 4.2: what BC brings to SVD, in accuracy and in the outputs' error, and what it brings to DALR."""
    found = {}
    for layer in LAYERS:
        for domain, solved in (("source", source), ("target", target)):
            solutions = solved.low_rank[layer]
            curves = {name: solved.curve(layer, name, solution) for name, solution in solutions.items()}
            for name in ("SVD", "DALR"):
                gain = 100 * (curves[f"{name} + BC"] - curves[name])
                found[f"{layer}, {domain}: BC with {name}, mean over ranks (points)"] = float(gain.mean())
            errors = {name: relative_errors(one, solved.test_statistics[layer]) for name, one in solutions.items()}
            ranks = useful(solutions["SVD"])
            for name in ("SVD + BC", "DALR"):
                ratio = errors[name][ranks] / errors["SVD"][ranks]
                found[f"{layer}, {domain}: output error, {name} / SVD, mean over ranks"] = float(ratio.mean())
    return found


def momasp_over_dalr(source: Solved, target: Solved) -> Quantities:
    """MoMaSP Tables 3-5: MoMaSP over DALR where both have the same number of parameters, by DALR's rank."""
    del source
    found = {}
    for layer in LAYERS:
        factors, node = target.low_rank[layer]["DALR"], target.selections[layer]["node"]
        for rank in useful(factors):
            kept = target.shape(layer).equal_parameters(rank)
            gain = target.at(layer, "node", node, kept) - target.at(layer, "DALR", factors, rank)
            found[f"{layer}: MoMaSP over DALR at the parameters of rank {rank} (points)"] = 100 * gain
    return found


def regulariser(source: Solved, target: Solved) -> Quantities:
    """MoMaSP 4.3: what the regulariser brings at the same number of nodes, strength 1."""
    del source
    found = {}
    for layer in LAYERS:
        chosen = target.selections[layer]
        plain = np.array([target.at(layer, "spectral", chosen["spectral"], size) for size in RANKS])
        for form in ("node", "subset"):
            gain = 100 * (np.array([target.at(layer, form, chosen[form], size) for size in RANKS]) - plain)
            found[f"{layer}: regulariser ({form}) over none, mean over sizes (points)"] = float(gain.mean())
            found[f"{layer}: regulariser ({form}) over none, best size (points)"] = float(gain.max())
            found[f"{layer}: regulariser ({form}) over none, worst size (points)"] = float(gain.min())
    return found


def close_candidates(source: Solved, target: Solved) -> Quantities:
    """MoMaSP 3.3: how alike candidates are in the retention ratio they would lead to (Eq. 2)."""
    del source
    found = {}
    for layer in LAYERS:
        sigma, chosen = target.statistics[READER[layer]].second_moment, target.selections[layer]["spectral"]
        for picks in PICKS:
            ratios = candidate_ratios(sigma, chosen.order[:picks])
            alike = float(np.mean(ratios >= (1.0 - CLOSE) * ratios.max()))
            found[f"{layer}: candidates within 1 % of the best ratio, {picks} nodes chosen (%)"] = 100 * alike
            found[f"{layer}: best ratio less the median one, {picks} nodes chosen (points)"] = float(
                100 * (ratios.max() - np.median(ratios))
            )
    return found


def candidate_ratios(sigma: NDArray[np.float64], chosen: Sequence[int] | NDArray[np.int64]) -> Vector:
    """r(J + j) of every live candidate j, from the residual Sigma - Sigma_FJ Sigma_JJ^-1 Sigma_JF."""
    rest = sigma
    if len(chosen):
        rest = sigma - sigma[:, chosen] @ np.linalg.pinv(sigma[np.ix_(chosen, chosen)]) @ sigma[chosen]
    own = np.diagonal(rest)
    candidates = np.flatnonzero(own > 1e-9 * np.diagonal(sigma).max())  # a node that is dead or explained is none
    candidates = candidates[~np.isin(candidates, chosen)]
    gains = np.sum(rest[:, candidates] ** 2, axis=0) / own[candidates]
    ratios: Vector = (np.trace(sigma) - np.trace(rest) + gains) / np.trace(sigma)
    return ratios


CLAIMS = (
    activation_shift,
    dalr_over_svd,
    target_statistics,
    bias_compensation,
    momasp_over_dalr,
    close_candidates,
    regulariser,
)
