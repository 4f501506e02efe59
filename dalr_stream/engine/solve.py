"""Moments to solutions by the name of a method: what the names in a run file stand for."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import FewSamplesWarning, InvalidInputError, OutlierFeaturesWarning
from dalr_stream.numerics.heads.factors import DEFAULT_RIDGE as RESTORE_RIDGE
from dalr_stream.numerics.heads.factors import HeadFactors, head_factors
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.lowrank.output_metric import DEFAULT_GRADIENT_RIDGE
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.methods import DalrOptions, Family, Method
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.selection.greedy import momasp, spectral
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.selection.ranking import prune_by_max, prune_by_mean
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix


def solve(
    layer: Layer,
    method: Method | str,
    *,
    source: Layer | None = None,
    ridge: Ridge | float | str = DEFAULT_RIDGE,
    strength: float = 1.0,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> Factors | ChannelSelection:
    """Return every rank, or every size, of one method, by its name in run files.

    Parameters
    ----------
    layer
        On the target domain.
    method
        `Method` or its value: "svd", "dalr_anchored_affine", "spectral", "momasp_node", ...
    source
        The layer on the source domain, for MoMaSP; not needed where `layer` has `source_nodes`.
    ridge
        The ridge of the DALR methods; a number is relative.
    strength
        The strength of MoMaSP's regulariser.
    gradient_ridge
        The ridge of the gradients' second moment, for the weighted methods; a number is relative.

    Returns
    -------
    LowRankFactors, GroupedFactors or ChannelSelection
        Factors of every rank (of a convolution in groups, for each group), or nested subsets of nodes.

    Raises
    ------
    InvalidInputError
        For an unknown method, for heads, which are four layers, and where the layer lacks the moments that it needs.

    See Also
    --------
    dalr, truncated_svd, spectral, momasp, numerics.head_factors : the solvers themselves, with all their options.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> statistics = ds.accumulate(model, batches, ds.watch(model, ["0"], example=batches[0]))
    >>> ds.solve(statistics["0"], "dalr_anchored_affine").at_rank(2).up.shape
    (12, 2)
    >>> ds.solve(statistics["0"], "spectral").at_size(5).size
    5
    """
    named = parse_choice(Method, method, "method")
    if named.family is Family.HEADS:
        raise InvalidInputError(
            f"layer '{layer.name}': '{named.value}' is solved from the four layers of an attention: "
            "numerics.head_factors(statistics, structure.heads_of(name))"
        )
    if named.family is Family.LOW_RANK:
        return solve_low_rank(layer, named, ridge, gradient_ridge)
    if source is not None and named.form is not None:
        return momasp(layer, source, form=named.form, strength=strength, metric=named.metric)
    return solve_selection(layer, named, strength)


def solve_heads(
    layers: Mapping[str, Layer],
    layout: HeadLayout,
    method: Method,
    restore_ridge: float = RESTORE_RIDGE,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> HeadFactors:
    """Return heads of every size, by the name of a method; `layers` are those of the attention."""
    weighted = method is Method.HEADS_WEIGHTED
    return head_factors(layers, layout, ridge=restore_ridge, weighted=weighted, gradient_ridge=gradient_ridge)


def solve_low_rank(
    layer: Layer,
    method: Method,
    ridge: Ridge | float | str = DEFAULT_RIDGE,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> Factors:
    """Return every rank of one low-rank method; each group of a convolution is solved by itself."""
    if method in (Method.SVD, Method.SVD_BC):
        return truncated_svd(layer, compensate_bias=method is Method.SVD_BC)
    options = _dalr_options(method)
    return dalr(
        layer,
        ridge=ridge,
        variant=options.variant,
        affine=options.affine,
        compensate_bias=options.compensate_bias,
        gradient_ridge=gradient_ridge,
    )


def factor_by(
    method: Method,
    weight: NDArray[np.floating],
    bias: NDArray[np.floating] | None,
    moments: Moments | CrossMoments,
    ridge: Ridge | float = DEFAULT_RIDGE,
    gradients: Moments | None = None,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> LowRankFactors:
    """Return every rank of one low-rank method, from the moments of the layer's inputs or of two runs."""
    if method in (Method.SVD, Method.SVD_BC):
        return truncated_svd(weight, bias, moments, compensate_bias=method is Method.SVD_BC)
    options = _dalr_options(method)
    return dalr(
        weight,
        bias,
        moments,
        ridge=ridge,
        variant=options.variant,
        affine=options.affine,
        compensate_bias=options.compensate_bias,
        gradients=gradients,
        gradient_ridge=gradient_ridge,
    )


def _dalr_options(method: Method) -> DalrOptions:
    if method.dalr_options is None:
        raise InvalidInputError(f"{method.value}: keeps nodes of a layer; a factor pair takes a low-rank method")
    return method.dalr_options


def solve_again(
    layer: Layer,
    method: Method,
    inputs: InputMoments,
    ridge: Ridge | float,
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE,
) -> Factors:
    """Solve from other rows of the same layer, in silence: too few samples are warned of where all of them are used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        warnings.simplefilter("ignore", OutlierFeaturesWarning)
        return solve_low_rank(layer.with_inputs(inputs), method, ridge, gradient_ridge)


def solve_selection(layer: Layer, method: Method, strength: float = 1.0) -> ChannelSelection:
    """Return every size of one selection of the layer's nodes."""
    if method.metric is Metric.NODES:
        source = layer.known_source_nodes if method.needs_source else None
        return select_by(method, layer.known_nodes, source, strength)
    if method.form is None:
        return spectral(layer, metric=method.metric)
    return momasp(layer, form=method.form, strength=strength, metric=method.metric)


def select_by(
    method: Method,
    target: Moments,
    source: Moments | None = None,
    strength: float = 1.0,
    metric: Matrix | None = None,
) -> ChannelSelection:
    """Return every size of one selection, from the moments of the nodes as their readers see them.

    `metric` (d, d) is M of a method that weighs errors by what reads the nodes.
    """
    if method.metric is not Metric.NODES:
        if metric is not None:
            return _in_metric(method, target, source, strength, metric)
        raise InvalidInputError(
            f"{method.value}: needs the weights of the layers that read the nodes: solve(layer, ...)"
        )
    if method is Method.PRUNE_MEAN:
        return prune_by_mean(target)
    if method is Method.PRUNE_MAX:
        return prune_by_max(target)
    if method is Method.SPECTRAL:
        return spectral(target)
    if method.form is None:
        raise InvalidInputError(f"{method.value}: makes factor pairs; nodes are kept by a selection")
    if source is None:
        raise InvalidInputError(f"{method.value}: needs the moments of a source domain")
    return momasp(target, source, form=method.form, strength=strength)


def _in_metric(
    method: Method, target: Moments, source: Moments | None, strength: float, metric: Matrix
) -> ChannelSelection:
    if method.form is None:
        found = spectral(target, metric=metric)
    else:
        found = momasp(target, source, form=method.form, strength=strength, metric=metric)
    return dataclasses.replace(found, method=method)
