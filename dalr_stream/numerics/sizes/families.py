"""Which layers are factored, which lose nodes and which heads get narrower, before any size is decided.

A selection narrows its layer, the layers tied to it and those that read it, so it and a factor pair in the same place
exclude one another; so do the heads of an attention and anything else in one of its four layers. `unchanged`,
`factored`, `selected` and `narrowed` are one layer in its forms; a plan takes one of them for each layer, and a rule of
`allocation` then decides the sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import within_budget
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, as_they_are, cost

FACTORED, SELECTED, READERS_TOO = "factor pairs", "selections", "selections, their readers factored"
MIXED = "the better family in each place"
NARROWED, BOTH_SMALLER = "heads", "heads and selections"
PLANS = (FACTORED, SELECTED, READERS_TOO, NARROWED, BOTH_SMALLER, MIXED)
"""Ways to divide layers among the families, in words; what is neither selected nor narrowed is factored."""

MOST_TOGETHER = 6
"""Selections and heads of layers that touch one another are weighed in every combination up to so many, else all or
none."""


@dataclass(frozen=True, slots=True, eq=False)
class Forms:
    """One layer as it is, and in the forms that were solved for it."""

    unchanged: SizedLayer
    factored: SizedLayer | None = None
    selected: SizedLayer | None = None
    narrowed: SizedLayer | None = None
    """With narrower heads, of the output layer of an attention."""

    @property
    def name(self) -> str:
        """The layer's."""
        return self.unchanged.name

    @property
    def solved(self) -> tuple[SizedLayer, ...]:
        """The forms in which it gets smaller."""
        forms = (self.factored, self.selected, self.narrowed)
        return tuple(form for form in forms if form is not None)

    def with_solved(self, change: Callable[[SizedLayer], SizedLayer | None]) -> Forms:
        """Return the layer with each form that was solved for it changed; None takes it away."""
        forms = (self.factored, self.selected, self.narrowed)
        return Forms(self.unchanged, *(None if form is None else change(form) for form in forms))

    def multiples_of(self, step: int) -> Forms:
        """Return the layer with only multiples of `step` as sizes, and itself as it is."""
        return self.with_solved(lambda form: form.multiples_of(step))

    def form(self, family: Family | None) -> SizedLayer:
        """Return the layer in one of its forms; None is as it is."""
        forms = {Family.LOW_RANK: self.factored, Family.SELECTION: self.selected, Family.HEADS: self.narrowed}
        form = self.unchanged if family is None else forms[family]
        if form is None:
            raise InvalidInputError(f"layer '{self.name}': nothing of the family {family} was solved")
        return form


Plan = tuple[Family | None, ...]
"""The form of each layer, None for those that stay as they are or are narrowed with others."""


Places = frozenset[tuple[str, Family]]
"""Which layers lose nodes, and which are the output layers of attentions whose heads get narrower."""


def plan_names(*, selects: bool, narrows: bool) -> tuple[str, ...]:
    """Return the plans that there are at most, where some layers may lose nodes or have narrower heads."""
    if not selects:
        return (FACTORED, NARROWED, MIXED) if narrows else (FACTORED,)
    return PLANS if narrows else (FACTORED, SELECTED, READERS_TOO, MIXED)


def plans(layers: Sequence[Forms], share: float) -> dict[str, Plan]:
    """Return the ways to divide layers among the families, by their names in words; those that are the same once.

    `share` of the layers' cost is what will be kept: it decides what the families lose where they are mixed.
    """
    every = _places(layers)
    selected, heads = (frozenset(place for place in every if place[1] is of) for of in (Family.SELECTION, Family.HEADS))
    divided = (
        _plan(layers, frozenset()),
        _plan(layers, selected),
        _plan(layers, selected, readers_too=True),
        _plan(layers, heads),
        _plan(layers, every),
        _plan(layers, _worth_it(layers, share)),
    )
    found = dict(zip(PLANS, divided, strict=True))
    words = {plan: name for name, plan in reversed(found.items())}  # the first name of those that are the same
    return {name: plan for name, plan in found.items() if words[plan] == name}


def in_forms(layers: Sequence[Forms], plan: Plan) -> list[SizedLayer]:
    """Return every layer in the form that the plan gives it."""
    return [layer.form(family) for layer, family in zip(layers, plan, strict=True)]


def _places(layers: Sequence[Forms]) -> Places:
    """Return all of them."""
    return frozenset(
        (layer.name, form.family) for layer in layers for form in layer.solved if form.family is not Family.LOW_RANK
    )


def _plan(layers: Sequence[Forms], places: Places, *, readers_too: bool = False) -> Plan:
    """Return a plan: nodes and heads in these places go, what that narrows stays as it is, and all else is factored."""
    narrowed = {name for name, of in places if of is Family.HEADS}
    selected = {name for name, of in places if of is Family.SELECTION} - narrowed
    selected -= {layer.name for layer in layers if layer.unchanged.attention in narrowed}

    def family(layer: Forms) -> Family | None:
        if layer.name in narrowed:
            return Family.HEADS
        if layer.name in selected:
            return Family.SELECTION
        smaller = layer.unchanged.follows in selected or layer.unchanged.attention in narrowed
        smaller |= not readers_too and any(source.layer in selected for source in layer.unchanged.reads)
        return None if smaller or layer.factored is None else Family.LOW_RANK

    return tuple(map(family, layers))


def _worth_it(layers: Sequence[Forms], share: float) -> Places:
    """Return where nodes and heads are better removed, each set of layers that touch one another weighed by itself."""
    best = (
        min(_combinations(together), key=lambda places: _loss(together, _plan(together, places), share))
        for together in _touching(layers)
    )
    return frozenset[tuple[str, Family]]().union(*best)


def _combinations(together: Sequence[Forms]) -> Iterator[Places]:
    places = sorted(_places(together))
    sizes = range(len(places) + 1) if len(places) <= MOST_TOGETHER else (0, len(places))
    for size in sizes:
        yield from map(frozenset, itertools.combinations(places, size))


def _loss(layers: Sequence[Forms], plan: Plan, share: float) -> float:
    """Return what a plan loses at a share of its cost; infinite where it cannot be made so small."""
    sized = in_forms(layers, plan)
    try:
        sizes = within_budget(sized, share * float(cost(sized, as_they_are(sized))))
    except InvalidInputError:
        return float("inf")
    return sum(layer.loss(sizes[layer.name]) for layer in sized)


def _touching(layers: Sequence[Forms]) -> list[list[Forms]]:
    """Return the layers in sets: what a selection, or narrower heads, in one of a set narrows is in that set."""
    home = {layer.name: {layer.name} for layer in layers}
    for layer in layers:
        for other in _decided_by(layer):
            if other in home and home[other] is not home[layer.name]:
                home[layer.name] |= home[other]
                home.update(dict.fromkeys(home[layer.name], home[layer.name]))
    sets = {id(names): names for names in home.values()}
    return [[layer for layer in layers if layer.name in names] for names in sets.values()]


def _decided_by(layer: Forms) -> list[str]:
    others = [*(source.layer for source in layer.unchanged.reads), layer.unchanged.follows, layer.unchanged.attention]
    return [name for name in others if name is not None]
