"""Sizes by what the loss feels: nats, one unit for all layers and both families.

Shares of a layer's own energy say little of what the network loses. With gradients known each layer has a curve in
nats, and a share can be kept of all layers together: what the loss hardly feels goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.options import require_share
from dalr_stream.numerics.sizes.families import Forms
from dalr_stream.numerics.sizes.growing import grow
from dalr_stream.numerics.sizes.sized_layer import SizedLayer


def in_nats(layers: Sequence[SizedLayer]) -> list[SizedLayer] | None:
    """Return the layers with losses as shares of what the loss feels of all of them; None where that is not known.

    A layer that has no size but its own loses nothing, and need not be known.
    """
    if not all(map(_is_known, layers)):
        return None
    whole = sum(layer.at_stake or 0.0 for layer in layers) or 1.0
    return [layer if layer.nats is None else replace(layer, losses=layer.nats / whole) for layer in layers]


def forms_in_nats(layers: Sequence[Forms]) -> list[Forms] | None:
    """Return the layers with losses in one unit, in the forms of which these are known; None where a layer has none.

    The unit is what is at stake in all layers, of each in the form in which that is more. One unit lets families be
    weighed against each other, in one layer and over all of them.
    """
    known = [[form for form in layer.solved if _is_known(form)] for layer in layers]
    if any(layer.solved and not forms for layer, forms in zip(layers, known, strict=True)):
        return None
    whole = sum(max((form.at_stake or 0.0 for form in forms), default=0.0) for forms in known) or 1.0

    def felt(form: SizedLayer | None) -> SizedLayer | None:
        if form is None or not _is_known(form):
            return None
        return form if form.nats is None else replace(form, losses=form.nats / whole)

    return [layer.with_solved(felt) for layer in layers]


def _is_known(layer: SizedLayer) -> bool:
    """Tell whether it is known what the loss feels of a layer; one that has no size but its own loses nothing."""
    return layer.nats is not None or layer.sizes.size == 1


def nats_at(layer: SizedLayer, size: int) -> float:
    """Return what the loss of a sample rises by at one of a layer's sizes; 0 of one that has no other."""
    return 0.0 if layer.nats is None else float(layer.nats[np.searchsorted(layer.sizes, size)])


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
    require_share(share, "nats: the share that is kept")
    felt = in_nats(layers)
    if felt is None:
        unknown = next(layer.name for layer in layers if not _is_known(layer))
        raise InvalidInputError(
            f"layer '{unknown}': what the loss feels of it is not known: give the gradients by its outputs, or by "
            "those of the layers that read its nodes"
        )
    return grow(felt, np.inf, enough=1.0 - share)
