"""A network of the claims with everything that is solved for it, and its accuracies with one layer compressed.

Statistics come from rows that no accuracy is measured on; an accuracy is measured once for a solution and a size.
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
from dalr_stream.numerics import LayerShape
from labelled_batches import Batches

Vector = NDArray[np.float64]
LAYERS = ("fc6", "fc7")
READER = {"fc6": "fc7", "fc7": "fc8"}
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FINE_RANKS = (*range(2, 32, 2), *range(32, 64, 4), *range(64, 128, 8), *range(128, 257, 16))
"""Where a drop of one point is looked for."""
DROP = 0.01
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

    def curve(self, layer: str, name: str, factors: ds.LowRankFactors, ranks: Sequence[int] | None = None) -> Vector:
        """Accuracy at the ranks, by default `RANKS`, that add no parameters."""
        return np.array([self.at(layer, name, factors, rank) for rank in useful(factors, ranks)])

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


def useful(factors: ds.LowRankFactors, ranks: Sequence[int] | None = None) -> list[int]:
    """Return those of the ranks, by default `RANKS`, that add no parameters."""
    return [rank for rank in ranks or RANKS if rank <= factors.break_even_rank]
