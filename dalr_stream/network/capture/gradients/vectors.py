"""The vectors that are sent back from a network's output, one backward pass each; `gradient_rule` defines them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.gradient_rule import Estimator, GradientRule, Metric
from dalr_stream.numerics.rows.draws import SampleDraws


def vectors_of(end: torch.Tensor, rule: GradientRule, draws: SampleDraws, mask: torch.Tensor | None) -> torch.Tensor:
    """Return v, of the form of `end`, which `end_of` gave; 0 where `mask` (N, T) leaves positions out.

    Cost: a few operations an entry, in float32 at least.
    """
    if rule.by_labels:
        return _masked(torch.ones_like(end), mask)
    values = end.detach()
    values = values if values.dtype == torch.float64 else values.float()
    by_position = values.reshape(len(values), -1, values.shape[-1])
    counted = _counted(mask, by_position)
    vectors = _at_each_position(by_position, rule, draws, None if counted is None else _ranks(counted))
    if counted is not None:
        vectors = vectors * counted[..., None].to(vectors.device)
    return vectors.reshape(end.shape).to(end.dtype)


def _at_each_position(
    values: torch.Tensor, rule: GradientRule, draws: SampleDraws, ranks: NDArray[np.int64] | None
) -> torch.Tensor:
    """(N, T, C) of `values` (N, T, C), with the random numbers of each position's rank; None where that is its own."""
    _, positions, features = values.shape
    if rule.estimator is Estimator.SAMPLED:
        uniform = draws.uniform(positions)
        uniform = uniform if ranks is None else np.take_along_axis(uniform, ranks, axis=1)
        return _towards_sampled(values, torch.from_numpy(uniform).to(values.device))
    signs = draws.signs(positions, features)
    signs = signs if ranks is None else np.take_along_axis(signs, ranks[..., None], axis=1)
    e = torch.from_numpy(signs).to(values)
    if rule.metric is Metric.VALUES:
        return e
    p = values.softmax(dim=-1)
    r = p.sqrt()
    return r * e - p * (r * e).sum(dim=-1, keepdim=True)


def _towards_sampled(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """p - onehot(y), y the first class at which the sum of p exceeds a number from [0, 1)."""
    p = scores.softmax(dim=-1)
    sums = p.double().cumsum(dim=-1)
    y = torch.searchsorted(sums, (uniform * sums[..., -1])[..., None], right=True).clamp(max=scores.shape[-1] - 1)
    return p.scatter_add(-1, y, torch.full_like(y, -1, dtype=p.dtype))


def _masked(weights: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the weights of losses, 0 where these are by position, (N, T), and `mask` leaves them out."""
    return weights if mask is None or mask.shape != weights.shape else weights * mask.to(weights.device)


def _counted(mask: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor | None:
    """(N, T): which positions of the output count, None where all do; raises InvalidInputError for a mask of others."""
    positions = values.shape[:2]
    if mask is None or values.shape[1] == 1:
        return None
    if mask.shape != positions:
        raise InvalidInputError(
            f"gradients: the network's output has positions (N, T) = {tuple(positions)}, and the mask "
            f"{tuple(mask.shape)}: name a function as gradients.outputs that gives the positions of the mask"
        )
    return mask


def _ranks(counted: torch.Tensor) -> NDArray[np.int64]:
    """(N, T): the number of each position among those of its sample that count; any one where it does not."""
    ranks: NDArray[np.int64] = np.maximum(np.cumsum(counted.numpy(), axis=1) - 1, 0)
    return ranks
