"""What the papers claim, as numbers: each measure gives quantities of one seed, all from the same solved networks.

Accuracies are differences in points of a hundred, at the same rank or the same number of parameters. A *mean over
ranks* is over `RANKS`, spaced evenly in their logarithm; one *over the paper's shares* over `PAPER_RANKS`. Nothing is
chosen by the test rows but the sizes at which a drop of one point begins.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

import dalr_stream as ds
from activity import half_share
from claims_solved import LAYERS, RANKS, READER, Solved, Vector, low_rank, useful
from dalr_stream.errors import FewSamplesWarning
from dalr_stream.numerics import relative_errors

Quantities = dict[str, float]

PAPER_RANKS = {"fc6": (4, 7, 14, 28, 56, 112), "fc7": (6, 12, 24, 48, 96, 192)}
"""Ranks at the shares of the layer's parameters in DALR's Tables 1-8: 0.91 to 29.08 % of fc6, 1.56 to 50 % of fc7."""
MOMASP_RANKS = {"fc6": RANKS, "fc7": (1, 2, 3, 6, 12, 24, 48, 96, 192)}
"""Of fc7 the first six are at the shares in MoMaSP's Tables 3-5, 0.20 to 6.25 %; the rest continue them."""
AS_PUBLISHED = "mean over the paper's shares (points)"
PICKS = (0, 16, 64)
"""Nodes chosen before the candidates are compared."""
CLOSE = 0.01


def gain_as_published(
    solved: Solved, layer: str, one: tuple[str, ds.LowRankFactors], other: tuple[str, ds.LowRankFactors]
) -> float:
    """Points that a named solution gains over another, mean over `PAPER_RANKS`."""
    curves = [solved.curve(layer, *pair, PAPER_RANKS[layer]) for pair in (one, other)]
    return float(100 * (curves[0] - curves[1]).mean())


def activation_shift(source: Solved, target: Solved) -> Quantities:
    """DALR Fig. 2: share of a layer's inputs that carry half of the activations, by the network before the move."""
    del target
    found = {}
    for layer in LAYERS:
        for name, statistics in (("source", source.statistics), ("target", source.foreign)):
            share = half_share(statistics[layer].active_rate)
            found[f"{layer} inputs: share carrying half of the activations, {name} (%)"] = 100 * share
    return found


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
                found[f"{layer}, {domain}: {name} over SVD, {AS_PUBLISHED}"] = gain_as_published(
                    solved, layer, (name, solutions[name]), ("SVD", solutions["SVD"])
                )
                for rank, value in zip(useful(solutions[name]), gain, strict=True):
                    found[f"{layer}, {domain}: {name} over SVD at rank {rank} (points)"] = float(value)
                needed = solved.sufficient_rank(layer, name, solutions[name])
                found[f"{layer}, {domain}: parameters of SVD over {name}, 1 point lost"] = enough / needed
                shape = solved.shape(layer)
                share = needed * (shape.outputs + shape.inputs) / (shape.outputs * shape.inputs)
                found[f"{layer}, {domain}: parameters that {name} keeps, 1 point lost (%)"] = 100 * share
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
            found[f"{layer}: {name} from target over source statistics, {AS_PUBLISHED}"] = gain_as_published(
                target, layer, (name, own[name]), (other, foreign[name])
            )
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
                found[f"{layer}, {domain}: BC with {name}, {AS_PUBLISHED}"] = gain_as_published(
                    solved, layer, (f"{name} + BC", solutions[f"{name} + BC"]), (name, solutions[name])
                )
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
        for rank in useful(factors, MOMASP_RANKS[layer]):
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


def closed_form(source: Solved, target: Solved) -> Quantities:
    """MoMaSP 5.4: processor time of its iterative selection over DALR's closed form, from the same statistics."""
    del source
    found = {}
    for layer, reader in READER.items():
        (weight, bias), x = ds.network.weights_of(target.domain.network, layer), target.statistics[layer]
        own, other = target.statistics[reader], target.foreign[reader]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewSamplesWarning)
            closed = seconds(lambda w=weight, b=bias, x=x: ds.dalr(w, b, x, variant="published", affine=False))
        for form in ds.numerics.Form:
            greedy = seconds(lambda o=own, f=other, form=form: ds.momasp(o, f, form=form))
            found[f"{layer}: time of MoMaSP ({form.value}) over DALR's"] = greedy / closed
    return found


def seconds(work: Callable[[], object]) -> float:
    """Processor time, the median of three."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return sorted(taken)[1]


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
    closed_form,
)
