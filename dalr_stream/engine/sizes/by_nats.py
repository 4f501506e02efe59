"""Sizes by what the loss feels of each layer, both families in one plan: those that keep a share of it, or a score.

Gradients give every layer a curve in nats, in one unit for all layers and both families. So the smallest sizes that
keep a share of what the loss feels are found from moments alone. To keep a *score* networks are scored: the budget is
halved between all and nothing for one way to share it out, and the other ways are tried below the smallest that kept
the score so far. Where a way keeps it there too, its budget is halved on.

    ways       menus x plans x rules; nats first, then the plain rules    engine.sizes.choice
    scores     7 networks for the first way, then mostly one for each

Scores of networks of one way are taken to fall with the budget. Where they do not, what is found keeps the score all
the same, as everything that is returned was scored, but a smaller network may have kept it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dalr_stream.engine.sizes.choice import Layers
from dalr_stream.engine.sizes.measuring import Sizes
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import common_energy, common_share, within_budget
from dalr_stream.numerics.sizes.families import Forms, in_forms, plan_names, plans
from dalr_stream.numerics.sizes.growing import grow
from dalr_stream.numerics.sizes.nats import forms_in_nats, nats_at
from dalr_stream.numerics.sizes.sized_layer import as_they_are, cost
from dalr_stream.progress import Progress, Silent

STEPS = 128
"""Budgets that are told apart, from nothing to all: 0.8 % of the weights between two."""
BY_RULE: Mapping[str, Callable[[Layers, Layers, float], dict[str, int]]] = {
    "nats by gradients": lambda felt, _, budget: within_budget(felt, budget),
    "shares of energy": lambda _, raw, budget: within_budget(raw, budget),
    "the same share of each": lambda _, raw, budget: common_share(raw, budget),
    "the same energy of each": lambda _, raw, budget: common_energy(raw, budget),
}
"""Sizes within a budget: from layers with losses in nats, and the same with shares of energy."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One network that keeps a budget, and how it scored."""

    menu: Menu = field(repr=False)
    """Whose solutions it is made of."""
    plan: str
    """Which layers are factored and which lose nodes, in words."""
    rule: str
    """By which the sizes were decided, in words."""
    sizes: Sizes
    left: float
    """Share of the layers' weights."""
    predicted: float
    """What the loss of a sample rises by, in nats, to second order."""
    score: float = float("nan")
    good: bool = False
    """Whether that is good enough."""


@dataclass(frozen=True, slots=True)
class Smallest:
    """The networks that were scored, in order."""

    attempts: tuple[Attempt, ...]

    @property
    def chosen(self) -> Attempt | None:
        """The smallest network whose score is good enough; None where none is: the network stays as it is."""
        kept = [one for one in self.attempts if one.good]
        return min(kept, key=lambda one: (one.left, one.predicted)) if kept else None


def felt_menus(menus: Sequence[Menu]) -> list[Menu]:
    """Return the menus of whose every layer is known what the loss feels."""
    return [menu for menu in menus if forms_in_nats(menu.forms) is not None]


def smallest_by_nats(menus: Sequence[Menu], share: float) -> tuple[Menu, Sizes]:
    """Return the sizes of least weight that keep `share` of what the loss feels of all layers, and their menu.

    `menus` are from `felt_menus`, at least one; each of their plans is tried. No network is built.
    """
    found: list[tuple[float, Menu, Sizes]] = []
    for menu in menus:
        felt = forms_in_nats(menu.forms) or []
        for plan in plans(felt, share).values():
            layers = in_forms(felt, plan)
            sizes = grow(layers, np.inf, enough=1.0 - share)
            found.append((_left(menu.forms, layers, sizes), menu, _smaller(layers, sizes)))
    _, menu, decided = min(found, key=lambda one: one[0])
    return menu, decided


def smallest_within(
    menus: Sequence[Menu],
    score: Callable[[Menu, Sizes], float],
    good: Callable[[float], bool],
    *,
    progress: Progress | None = None,
) -> Smallest:
    """Return the networks that were scored on the way to the smallest whose score is good enough.

    `menus` are from `felt_menus`, at least one; `score` is that of the network of some sizes. Nodes that cannot go, as
    where the network's own input is added to them, end the plans that select them.
    """
    search = _Search(score, good, progress or Silent())
    for menu in menus:
        for plan, rule in _ways(menu):
            search.go_through(menu, plan, rule)
    return Smallest(tuple(search.attempts))


def networks_at_most(menus: int, plans_of_each: int) -> tuple[int, int]:
    """Return how many networks are scored where no way is better than the first, and where each is better in turn."""
    ways, halvings = menus * plans_of_each * len(BY_RULE), STEPS.bit_length() - 1
    return halvings + ways - 1, (1 + halvings) * ways - 1


def _ways(menu: Menu) -> Iterator[tuple[str, str]]:
    """Yield plans and rules, the most promising rule first; which plans are the same depends on the budget."""
    selects = any(layer.selected is not None for layer in menu.forms)
    narrows = any(layer.narrowed is not None for layer in menu.forms)
    for rule in BY_RULE:
        for plan in plan_names(selects=selects, narrows=narrows):
            yield plan, rule


@dataclass(slots=True)
class _Search:
    """What was scored so far: the one thing here that changes."""

    score: Callable[[Menu, Sizes], float]
    good: Callable[[float], bool]
    progress: Progress
    best: int = STEPS
    """The smallest budget at which a network was good enough, in steps; at first that of the network as it is."""
    attempts: list[Attempt] = field(default_factory=list)

    def go_through(self, menu: Menu, plan: str, rule: str) -> None:
        """Halve the budgets below the best, where this way is good enough just below it."""
        low, high = -1, self.best
        step = high - 1 if self.attempts else (low + high) // 2
        while low < step < high:
            if self._is_good(menu, plan, rule, step):
                high = self.best = step
            elif step == high - 1:
                return
            else:
                low = step
            step = (low + high) // 2

    def _is_good(self, menu: Menu, plan: str, rule: str, step: int) -> bool:
        attempt = _sized(menu, plan, rule, step / STEPS)
        if attempt is None:
            return False
        for one in self.attempts:
            if one.menu is menu and one.sizes == attempt.sizes:
                return one.good
        try:
            value = self.score(menu, attempt.sizes)
        except UnsupportedLayerError as error:
            self.progress.note(f"search: {plan}: {error}")
            return False
        scored = replace(attempt, score=value, good=self.good(value))
        self.attempts.append(scored)
        self.progress.note(
            f"search: {plan}{menu.words} by {rule}, {scored.left:.1%} of the weights: {scored.predicted:.4g} nats "
            f"predicted, {value:.4f}: {'good' if scored.good else 'too much lost'}"
        )
        return scored.good


def _sized(menu: Menu, plan: str, rule: str, share: float) -> Attempt | None:
    """Return the network of one way at one budget, to be scored; None where the way cannot be so small."""
    felt = forms_in_nats(menu.forms) or []
    families = plans(felt, share).get(plan) if share else None
    if families is None:
        return None
    raw, budget = in_forms(menu.forms, families), share * _whole(menu.forms)
    try:
        sizes = BY_RULE[rule](in_forms(felt, families), raw, budget)
    except InvalidInputError:  # the smallest sizes cost more
        return None
    predicted = sum(nats_at(layer, sizes[layer.name]) for layer in raw)
    return Attempt(menu, plan + menu.words, rule, _smaller(raw, sizes), _left(menu.forms, raw, sizes), predicted)


def _smaller(layers: Layers, sizes: Mapping[str, int]) -> dict[str, tuple[Family, int]]:
    return {one.name: (one.family, sizes[one.name]) for one in layers if sizes[one.name] != one.whole}


def _left(forms: Sequence[Forms], layers: Layers, sizes: Mapping[str, int]) -> float:
    return float(cost(layers, sizes)) / _whole(forms)


def _whole(forms: Sequence[Forms]) -> float:
    whole = [layer.unchanged for layer in forms]
    return float(cost(whole, as_they_are(whole)))
