"""Which layers are factored and which lose nodes, before any size is decided: four ways, each for all layers at once.

A selection narrows its layer, the layers tied to it and those that read it, so it and a factor pair in the same place
exclude one another. `unchanged`, `factored` and `selected` are one layer in its three forms; a plan takes one of them
for each layer, and a rule of `allocation` then decides the sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import within_budget
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, as_they_are, cost

PLANS = ("factor pairs", "selections", "selections, their readers factored", "the better family in each place")
"""Ways to divide layers among the families, in words."""

MOST_TOGETHER = 6
"""Selections of layers that touch one another are weighed in every combination up to so many, else all or none."""


@dataclass(frozen=True, slots=True, eq=False)
class Forms:
    """One layer as it is, and in the forms that were solved for it."""

    unchanged: SizedLayer
    factored: SizedLayer | None = None
    selected: SizedLayer | None = None

    @property
    def name(self) -> str:
        """The layer's."""
        return self.unchanged.name

    @property
    def solved(self) -> tuple[SizedLayer, ...]:
        """The forms in which it gets smaller."""
        return tuple(form for form in (self.factored, self.selected) if form is not None)

    def multiples_of(self, step: int) -> Forms:
        """Return the layer with only multiples of `step` as sizes, and itself as it is."""
        forms = (self.factored, self.selected)
        return Forms(self.unchanged, *(None if form is None else form.multiples_of(step) for form in forms))

    def form(self, family: Family | None) -> SizedLayer:
        """Return the layer in one of its forms; None is as it is."""
        forms = {Family.LOW_RANK: self.factored, Family.SELECTION: self.selected}
        form = self.unchanged if family is None else forms[family]
        if form is None:
            raise InvalidInputError(f"layer '{self.name}': nothing of the family {family} was solved")
        return form


Plan = tuple[Family | None, ...]
"""The form of each layer, None for those that stay as they are or are narrowed with others."""


def plans(layers: Sequence[Forms], share: float) -> dict[str, Plan]:
    """Return the ways to divide layers among the families, by their names in words; those that are the same once.

    `share` of the layers' cost is what will be kept: it decides what the families lose where they are mixed.
    """
    every = frozenset(layer.name for layer in layers if layer.selected is not None)
    divided = (
        _plan(layers, frozenset()),
        _plan(layers, every),
        _plan(layers, every, readers_too=True),
        _plan(layers, _worth_selecting(layers, share)),
    )
    found = dict(zip(PLANS, divided, strict=True))
    words = {plan: name for name, plan in reversed(found.items())}  # the first name of those that are the same
    return {name: plan for name, plan in found.items() if words[plan] == name}


def in_forms(layers: Sequence[Forms], plan: Plan) -> list[SizedLayer]:
    """Return every layer in the form that the plan gives it."""
    return [layer.form(family) for layer, family in zip(layers, plan, strict=True)]


def _plan(layers: Sequence[Forms], selected: frozenset[str], *, readers_too: bool = False) -> Plan:
    """Return a plan: nodes of these layers go, what that narrows stays as it is, and all else is factored."""

    def family(layer: Forms) -> Family | None:
        if layer.name in selected:
            return Family.SELECTION
        narrowed = layer.unchanged.follows in selected
        narrowed |= not readers_too and any(source.layer in selected for source in layer.unchanged.reads)
        return None if narrowed or layer.factored is None else Family.LOW_RANK

    return tuple(map(family, layers))


def _worth_selecting(layers: Sequence[Forms], share: float) -> frozenset[str]:
    """Return the layers whose nodes are better removed, each set of layers that touch one another weighed by itself."""
    best = (
        min(_combinations(together), key=lambda selected: _loss(together, _plan(together, selected), share))
        for together in _touching(layers)
    )
    return frozenset[str]().union(*best)


def _combinations(together: Sequence[Forms]) -> Iterator[frozenset[str]]:
    names = [layer.name for layer in together if layer.selected is not None]
    sizes = range(len(names) + 1) if len(names) <= MOST_TOGETHER else (0, len(names))
    for size in sizes:
        yield from map(frozenset, itertools.combinations(names, size))


def _loss(layers: Sequence[Forms], plan: Plan, share: float) -> float:
    """Return what a plan loses at a share of its cost; infinite where it cannot be made so small."""
    sized = in_forms(layers, plan)
    try:
        sizes = within_budget(sized, share * float(cost(sized, as_they_are(sized))))
    except InvalidInputError:
        return float("inf")
    return sum(layer.loss(sizes[layer.name]) for layer in sized)


def _touching(layers: Sequence[Forms]) -> list[list[Forms]]:
    """Return the layers in sets: what a selection in one of a set narrows is in that set."""
    home = {layer.name: {layer.name} for layer in layers}
    for layer in layers:
        for other in _decided_by(layer):
            if other in home and home[other] is not home[layer.name]:
                home[layer.name] |= home[other]
                home.update(dict.fromkeys(home[layer.name], home[layer.name]))
    sets = {id(names): names for names in home.values()}
    return [[layer for layer in layers if layer.name in names] for names in sets.values()]


def _decided_by(layer: Forms) -> list[str]:
    others = [*(source.layer for source in layer.unchanged.reads), layer.unchanged.follows]
    return [name for name in others if name is not None]
