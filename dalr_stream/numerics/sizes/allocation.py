"""A size for each of several layers, from what each of them loses at each of its sizes: no network and no data.

Losses of all layers are added up, and their sum is what a budget keeps small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.options import is_number, require_share
from dalr_stream.numerics.sizes.growing import grow
from dalr_stream.numerics.sizes.sized_layer import RESOLUTION, SizedLayer, cost

BISECTIONS = 50
"""Halvings of a share: closer than any two sizes that it decides between."""


def uniform(layers: Sequence[SizedLayer], ratio: float) -> dict[str, int]:
    """Return in every layer the largest size of at most `ratio` of the full rank or of all nodes.

    The smallest size where none is so small. Ratios above a layer's break-even leave it as it is.

    Parameters
    ----------
    layers
        From `factor_layer`, `selection_layer` or `unchanged_layer`.
    ratio
        The same for every layer, 0 < ratio <= 1.

    Returns
    -------
    dict
        Size by layer: a rank, or a number of kept nodes.

    Raises
    ------
    InvalidInputError
        For a ratio outside its range.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> weight, moments = np.diag([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]), ds.Moments.of(np.eye(6))
    >>> layer = ds.numerics.factor_layer("fc", ds.dalr(weight, None, moments, affine=False), moments)
    >>> ds.numerics.uniform([layer], 0.4)
    {'fc': 2}
    """
    require_share(ratio, "ratio")
    return {layer.name: _at_ratio(layer, ratio) for layer in layers}


def by_energy(layers: Sequence[SizedLayer], share: float) -> dict[str, int]:
    """Return in every layer the smallest size that keeps `share` of the energy.

    Parameters
    ----------
    layers
        From `factor_layer`, `selection_layer` or `unchanged_layer`.
    share
        Of each layer's own energy, 0 < share <= 1.

    Returns
    -------
    dict
        Size by layer: a rank, or a number of kept nodes.

    Raises
    ------
    InvalidInputError
        For a share outside its range.

    See Also
    --------
    common_energy : the largest share within a budget.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> weight, moments = np.diag([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]), ds.Moments.of(np.eye(6))
    >>> layer = ds.numerics.factor_layer("fc", ds.dalr(weight, None, moments, affine=False), moments)
    >>> ds.numerics.by_energy([layer], 0.9)
    {'fc': 2}
    """
    require_share(share, "energy")
    return {layer.name: int(layer.sizes[np.argmax(layer.losses <= 1.0 - share + RESOLUTION)]) for layer in layers}


def common_share(layers: Sequence[SizedLayer], budget: float) -> dict[str, int]:
    """Return the same share of its own weights in every layer, the largest that costs at most `budget` together.

    Of a selection that is a share of the nodes, of a factor pair one of the break-even rank.

    Parameters
    ----------
    layers
        From `factor_layer`, `selection_layer` or `unchanged_layer`.
    budget
        Weights that all layers may have together, or multiply-adds where `positions` count.

    Returns
    -------
    dict
        Size by layer: a rank, or a number of kept nodes.

    Raises
    ------
    InvalidInputError
        Where the smallest sizes cost more than `budget`.

    See Also
    --------
    within_budget : sizes that differ by what each layer loses.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> weight, moments = np.diag([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]), ds.Moments.of(np.eye(6))
    >>> layer = ds.numerics.factor_layer("fc", ds.dalr(weight, None, moments, affine=False), moments)
    >>> ds.numerics.common_share([layer], budget=24)
    {'fc': 2}
    """
    return _largest_within(layers, budget, lambda share: {layer.name: layer.at_share(share) for layer in layers})


def common_energy(layers: Sequence[SizedLayer], budget: float) -> dict[str, int]:
    """Return the same share of its own energy in every layer, the largest that costs at most `budget` together.

    Parameters
    ----------
    layers
        From `factor_layer`, `selection_layer` or `unchanged_layer`.
    budget
        Weights that all layers may have together, or multiply-adds where `positions` count.

    Returns
    -------
    dict
        Size by layer: a rank, or a number of kept nodes.

    Raises
    ------
    InvalidInputError
        Where the smallest sizes cost more than `budget`.

    See Also
    --------
    by_energy : for a given share.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> weight, moments = np.diag([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]), ds.Moments.of(np.eye(6))
    >>> layer = ds.numerics.factor_layer("fc", ds.dalr(weight, None, moments, affine=False), moments)
    >>> ds.numerics.common_energy([layer], budget=24)
    {'fc': 2}
    """
    return _largest_within(layers, budget, lambda share: by_energy(layers, max(share, RESOLUTION)))


def within_budget(layers: Sequence[SizedLayer], budget: float) -> dict[str, int]:
    """Return sizes that cost at most `budget` together and keep the sum of losses small.

    Parameters
    ----------
    layers
        From `factor_layer`, `selection_layer` or `unchanged_layer`.
    budget
        Weights that all layers may have together, or multiply-adds where `positions` count.

    Returns
    -------
    dict
        Size by layer: a rank, or a number of kept nodes.

    Raises
    ------
    InvalidInputError
        Where the smallest sizes cost more than `budget`.

    See Also
    --------
    dalr_stream.sizes : measures candidates on the whole network.

    Notes
    -----
    Greedy from the smallest sizes: the step to a larger size that saves most loss for its cost, among those that the
    budget still allows, until it allows none. With no budget in the way these are the steps along each curve's lower
    convex hull. Where no layer reads another's nodes the sum of losses is above the smallest possible by less than the
    first step that had to be passed over.

    Cost: (steps taken) x (sizes of one layer).

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> layers = []
    >>> for name, spread in (("steep", [8.0, 1.0, 0.5, 0.25, 0.1, 0.1]), ("flat", [2.0, 2.0, 1.5, 1.0, 1.0, 1.0])):
    ...     moments = ds.Moments.of(np.eye(6))
    ...     factors = ds.dalr(np.diag(spread), None, moments, affine=False)
    ...     layers.append(ds.numerics.factor_layer(name, factors, moments))
    >>> ds.numerics.within_budget(layers, budget=48)  # a rank costs 12 in each, a whole layer 36
    {'steep': 1, 'flat': 6}
    """
    sizes = {layer.name: int(layer.sizes[0]) for layer in layers}
    return grow(layers, budget - _require_affordable(layers, sizes, budget))


def _require_affordable(layers: Sequence[SizedLayer], smallest: Mapping[str, int], budget: float) -> float:
    """Return what the smallest sizes cost."""
    least = float(cost(layers, smallest))
    if not is_number(budget):
        raise InvalidInputError(f"budget: must be a number of weights, or of multiply-adds, got {budget!r}")
    if least > budget:
        sizes = ", ".join(f"{name} {size}" for name, size in smallest.items())
        raise InvalidInputError(
            f"budget: the smallest sizes ({sizes}) cost {least:,.0f} and the budget is {budget:,.0f}: raise it, or "
            "leave layers out"
        )
    return least


def _largest_within(
    layers: Sequence[SizedLayer], budget: float, at_share: Callable[[float], dict[str, int]]
) -> dict[str, int]:
    """Return the sizes at the largest share in 0..1 whose cost `budget` allows; costs grow with the share."""
    low, high, best = 0.0, 1.0, at_share(0.0)
    _require_affordable(layers, best, budget)
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        sizes = at_share(share)
        if float(cost(layers, sizes)) <= budget:
            low, best = share, sizes
        else:
            high = share
    return best


def _at_ratio(layer: SizedLayer, ratio: float) -> int:
    wanted = int(ratio * layer.whole + RESOLUTION)  # 0.29 x 100 is a little less than 29
    if layer.family is Family.LOW_RANK and wanted > layer.shape.break_even_rank:
        return layer.whole
    return int(layer.sizes[max(int(np.searchsorted(layer.sizes, wanted, side="right")) - 1, 0)])
