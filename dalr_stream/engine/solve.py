"""Moments to solutions by the name of a method: what the names in a run file stand for."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import FewSamplesWarning, InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors, factors_of
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.lowrank.solvers import dalr, truncated_svd
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.greedy import momasp, prune_by_max, prune_by_mean, spectral
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments


def solve_low_rank(layer: Layer, method: Method, ridge: Ridge = DEFAULT_RIDGE) -> Factors:
    """Return every rank of one low-rank method; each group of a convolution is solved by itself."""
    return factors_of([_solve_part(part, method, ridge) for part in layer.parts])


def _solve_part(part: Layer, method: Method, ridge: Ridge) -> LowRankFactors:
    (moments,) = part.known_inputs.parts
    return factor_by(method, part.weight, part.bias, moments, ridge)


def factor_by(
    method: Method,
    weight: NDArray[np.floating],
    bias: NDArray[np.floating] | None,
    moments: Moments | CrossMoments,
    ridge: Ridge = DEFAULT_RIDGE,
) -> LowRankFactors:
    """Return every rank of one low-rank method, from the moments of the layer's inputs or of two runs."""
    if method in (Method.SVD, Method.SVD_BC):
        return truncated_svd(weight, bias, moments, compensate_bias=method is Method.SVD_BC)
    options = method.dalr_options
    if options is None:
        raise InvalidInputError(f"{method.value}: is a selection; a factor pair is solved by a low-rank method")
    return dalr(weight, bias, moments, ridge=ridge, **dataclasses.asdict(options))


def solve_again(layer: Layer, method: Method, inputs: InputMoments, ridge: Ridge) -> Factors:
    """Solve from other rows of the same layer, in silence: too few samples are warned of where all of them are used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        return solve_low_rank(dataclasses.replace(layer, inputs=inputs), method, ridge)


def solve_selection(layer: Layer, method: Method, strength: float = 1.0) -> ChannelSelection:
    """Return every size of one selection of the layer's nodes."""
    if layer.nodes is None:
        raise InvalidInputError(f"{method.value}: needs the moments of what reads the layer's nodes")
    return select_by(method, layer.nodes, layer.source_nodes, strength)


def select_by(
    method: Method, target: Moments, source: Moments | None = None, strength: float = 1.0
) -> ChannelSelection:
    """Return every size of one selection, from the moments of the nodes as their readers see them."""
    if method is Method.PRUNE_MEAN:
        return prune_by_mean(target)
    if method is Method.PRUNE_MAX:
        return prune_by_max(target)
    if method is Method.SPECTRAL:
        return spectral(target)
    if method.form is None:
        raise InvalidInputError(f"{method.value}: is a low-rank method; nodes are selected by a selection")
    if source is None:
        raise InvalidInputError(f"{method.value}: needs the moments of a source domain")
    return momasp(target, source, form=method.form, strength=strength)
