"""Which of the methods that are solved a rule takes: one of each family, where none is named."""

from __future__ import annotations

from collections.abc import Sequence

from dalr_stream.numerics.methods import Family, Method

PREFERRED = (Method.DALR_ANCHORED_AFFINE, Method.SPECTRAL, Method.HEADS)
"""Taken of their family where a run file names no method, if they are solved."""
WEIGHTED = (Method.DALR_WEIGHTED_AFFINE, Method.SPECTRAL_WEIGHTED, Method.HEADS_WEIGHTED)
"""Tried beside them within a budget, if they are solved."""


def default_of(family: Family, solved: Sequence[Method]) -> Method | None:
    """Return the method of a family where none is named."""
    known = [method for method in solved if method.family is family]
    return next((method for method in PREFERRED if method in known), known[0] if known else None)


def within_budget(solved: Sequence[Method], named: Method | None) -> tuple[Method, ...]:
    """Return the methods that a layer may be compressed by, one of a family at most.

    The factor pairs after a selection or heads that are named are for layers that these do not apply to.
    """
    factors = default_of(Family.LOW_RANK, solved)
    if named is None:
        others = [default_of(family, solved) for family in (Family.SELECTION, Family.HEADS)]
    elif named.family is Family.LOW_RANK:
        return (named,)
    else:
        others = [named]
    return tuple(method for method in (*others, factors) if method is not None)


def weighted_within_budget(solved: Sequence[Method], methods: Sequence[Method]) -> tuple[Method, ...]:
    """Return the methods tried beside these: of each family the one weighted by gradients, where it is solved."""
    weighted = {method.family: method for method in WEIGHTED if method in solved}
    return tuple(weighted.get(method.family, method) for method in methods)
