"""Sizes by what the loss feels: nats, one unit for all layers and both families.

Shares of a layer's own energy say little of what the network loses. With gradients known each layer has a curve in
nats, and a share can be kept of all layers together: what the loss hardly feels goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.sizes.growing import grow
from dalr_stream.numerics.sizes.sized_layer import SizedLayer


def in_nats(layers: Sequence[SizedLayer]) -> list[SizedLayer] | None:
    """Return the layers with losses as shares of what the loss feels of all of them; None where that is not known.

    A layer that has no size but its own loses nothing, and need not be known.
    """
    if any(layer.nats is None and layer.sizes.size > 1 for layer in layers):
        return None
    whole = sum(layer.at_stake or 0.0 for layer in layers) or 1.0
    return [layer if layer.nats is None else replace(layer, losses=layer.nats / whole) for layer in layers]


def by_nats(layers: Sequence[SizedLayer], share: float) -> dict[str, int]:
    """Return small sizes that keep `share` of what the loss feels of all layers together.

    What is kept is 1 - sum of nats lost / sum of nats at stake.

    Parameters
    ----------
    layers
        From `factor_layer` with gradients, `selection_layer` with nats, or `unchanged_layer`.
    share
        Of what is at stake in all layers, 0 < share <= 1.

    Returns
    -------
    dict
        Size by layer: a rank, or a number of kept nodes.

    Raises
    ------
    InvalidInputError
        For a share outside its range, and where the nats of a layer are not known.

    See Also
    --------
    by_energy : the same share of each layer's own energy, which needs no gradients.

    Notes
    -----
    Greedy, as `within_budget`: by the step that saves most nats for its weights, until enough are kept.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> inputs, layers = ds.Moments.of(np.eye(6)), []
    >>> for name, felt in (("felt", 1.0), ("hardly", 0.1)):
    ...     gradients = ds.Moments.of(felt * np.eye(6))
    ...     factors = ds.dalr(np.diag([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]), None, inputs)
    ...     layers.append(ds.numerics.factor_layer(name, factors, inputs, gradients=gradients))
    >>> ds.numerics.by_nats(layers, 0.95)
    {'felt': 3, 'hardly': 1}
    """
    if not 0.0 < share <= 1.0:
        raise InvalidInputError(f"nats: the share that is kept must lie in (0, 1], got {share}")
    felt = in_nats(layers)
    if felt is None:
        unknown = next(layer.name for layer in layers if layer.nats is None and layer.sizes.size > 1)
        raise InvalidInputError(
            f"layer '{unknown}': what the loss feels of it is not known: give the gradients by its outputs, or by "
            "those of the layers that read its nodes"
        )
    return grow(felt, np.inf, enough=1.0 - share)
