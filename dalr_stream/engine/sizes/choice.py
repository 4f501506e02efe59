"""Sizes for all layers within a budget: candidates are predicted from moments, measured whole, and the best is taken.

Shares of energy of different layers are not one unit: a hundredth of one layer's energy may be what the network lives
by. So each layer is cut alone, once in each form, and what that does to the network's *outputs* on a few batches is the
scale of its curve; then losses may be compared, added up and shared out, factor pairs against selections too. They do
not quite add up over depth, which is why nothing is trusted: every candidate is built and measured whole, among them
the plain ones, the same share or the same energy everywhere, so the choice is never worse than they are.

    forms      each layer as a factor pair, with fewer nodes or heads   numerics.sizes.families
    scales     one network for each form: one layer cut
    plans      which layers take which form                             numerics.sizes.families.plans
    rules      which sizes, within the budget; also by nats             numerics.sizes.allocation
    candidates plans x rules, each one whole network: the best is taken
    in turn    where layers are compressed one after the other, the nearest of each rule are built so and measured again

The sizes that are best at once are not those that are best in turn: what layers lose in turn, later ones make up for,
down to what a single layer cannot do without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from dalr_stream.engine.sizes.measuring import MeasureAll, Outcome, SizedNetwork, Sizes
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import common_energy, common_share, within_budget
from dalr_stream.numerics.sizes.families import Forms, in_forms, plans
from dalr_stream.numerics.sizes.nats import in_nats
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, as_they_are, cost
from dalr_stream.progress import Progress, Silent

LEAST_LOSS = 1e-6
"""A share of energy from which a scale may be taken: below it the curve is rounding."""

Layers = Sequence[SizedLayer]
"""Each in the form that a plan gives it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to keep the budget."""

    plan: str
    """Which layers are factored and which lose nodes, in words."""
    rule: str
    """By which the sizes were decided, in words."""
    sizes: Sizes
    predicted: float
    """Sum of what the layers lose alone, in the unit of `distance`."""
    distance: float
    """Of the network's outputs from the original's, measured."""
    score: float | None = None
    """On validation, where there is one."""

    @property
    def network(self) -> SizedNetwork:
        """What is to be measured."""
        return SizedNetwork(f"{self.plan} by {self.rule}", self.sizes)

    def measured(self, outcome: Outcome) -> Candidate:
        """Return it with what its network was measured at; raises UnsupportedLayerError where there is none."""
        if isinstance(outcome, UnsupportedLayerError):
            raise outcome
        return dataclasses.replace(self, distance=outcome.distance, score=outcome.score)

    @property
    def factored_alone(self) -> bool:
        """Tell whether no layer loses nodes, nor dimensions of its heads."""
        return all(family is Family.LOW_RANK for family, _ in self.sizes.values())


@dataclass(frozen=True, slots=True)
class SizeChoice:
    """Every candidate, the chosen one first."""

    candidates: tuple[Candidate, ...]
    at_once: tuple[Candidate, ...] = ()
    """Where candidates are compressed layer after layer, those that they were taken from, measured all at once."""

    @property
    def chosen(self) -> Candidate:
        """The candidate of the best score, or of the smallest distance."""
        return self.candidates[0]

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of predicted and measured distances; None for fewer than three candidates."""
        return rank_correlation([(one.predicted, one.distance) for one in self.candidates])


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Spearman's; None for fewer than three pairs, and where one of the two never differs."""
    if len(pairs) < 3 or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    return float(stats.spearmanr(pairs).statistic)


def ranked(candidates: Iterable[Candidate], *, higher: bool = True) -> tuple[Candidate, ...]:
    """Return candidates, the best first: by the score where there is one, of which more or less is better."""

    def badness(one: Candidate) -> tuple[float, float]:
        return (0.0 if one.score is None else -one.score if higher else one.score), one.distance

    return tuple(sorted(candidates, key=badness))


def choose_sizes(
    layers: Sequence[Forms],
    share: float,
    measure: MeasureAll,
    *,
    scored: bool = True,
    higher: bool = True,
    progress: Progress | None = None,
) -> SizeChoice:
    """Return the candidates that keep at most `share` of the layers' cost, the best of them first.

    Parameters
    ----------
    layers
        In the network's order, each in the forms that were solved for it; losses are shares of energy.
    share
        Of the cost of all layers as they are, in 0..1.
    measure
        Says how far the outputs of networks with some layers smaller are from the original's, as `OutputDistance`
        does, and how they score, where there is a score: then that chooses, and the distance among equals.
    scored
        Whether candidates are scored.
    higher
        Whether more of the score is better.

    Raises InvalidInputError where the smallest sizes cost more than the budget, NonFiniteError where a network's
    outputs are not finite. Cost: a network for each form of each layer, and one for each candidate, at most 30.
    """
    require_affordable(layers, share)
    watch = progress or Silent()
    scaled = _in_one_unit(layers, share, measure, watch)
    whole = [layer.unchanged for layer in layers]
    budget = share * float(cost(whole, as_they_are(whole)))
    wanted = list(_different(_candidates(layers, scaled, share, budget)))
    outcomes = measure("compress: candidates", [one.network for one in wanted], scored=scored)
    found = [candidate.measured(outcome) for candidate, outcome in zip(wanted, outcomes, strict=True)]
    return SizeChoice(ranked(found, higher=higher))


def finalists(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the nearest of each rule with factor pairs alone, and of those that lose nodes or dimensions of heads.

    The plain rules are among them with either family: what is chosen of them is never worse than those are.
    """
    nearest: dict[tuple[str, bool], Candidate] = {}
    for one in sorted(candidates, key=lambda one: one.distance):
        nearest.setdefault((one.rule, one.factored_alone), one)
    return tuple(nearest.values())


def require_affordable(layers: Sequence[Forms], share: float) -> None:
    """Raise InvalidInputError where the smallest sizes cost more than `share` of all layers, in every plan."""
    whole = [layer.unchanged for layer in layers]
    budget = share * float(cost(whole, as_they_are(whole)))
    found = [_least(in_forms(layers, plan)) for plan in plans(layers, share).values()]
    if all(least > budget for _, least in found):
        sizes, least = min(found, key=lambda one: one[1])
        smallest = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InvalidInputError(
            f"budget: the smallest sizes ({smallest}) cost {least:,.0f} and the budget is {budget:,.0f}: raise it, or "
            "leave layers out"
        )


def _least(plan: Layers) -> tuple[dict[str, int], float]:
    """Return the smallest sizes of a plan's layers, and what they cost."""
    sizes = {layer.name: int(layer.sizes[0]) for layer in plan}
    return sizes, float(cost(plan, sizes))


def networks_to_measure(forms: int, plans_at_most: int) -> int:
    """Return how many networks are built at most, for so many forms of layers: what is said before anything long."""
    return forms + len(RULES) * plans_at_most


def networks_in_turn(*, narrows: bool) -> int:
    """Return how many of them are built again layer after layer at most, where that is the order.

    `narrows` is whether any layer may lose nodes, or have narrower heads.
    """
    return len(RULES) * (1 + narrows)


def _in_one_unit(layers: Sequence[Forms], share: float, measure: MeasureAll, progress: Progress) -> list[Forms]:
    """Return the layers with losses in the unit of the outputs: each form of each layer is cut alone, once.

    Nodes that turn out to be needed, as where the network's own input is added to them, are not selected.
    """
    sizes = [(form, _typical(form, share)) for layer in layers for form in layer.solved]
    cuts = [(form, size) for form, size in sizes if size != form.whole]
    scales: dict[tuple[str, Family], float | None] = {(form.name, form.family): 0.0 for form, _ in sizes}
    outcomes = measure("compress: one layer at a time", [_cut_alone(*cut) for cut in cuts], scored=False)
    for (form, size), outcome in zip(cuts, outcomes, strict=True):
        scales[form.name, form.family] = _scale(form, size, outcome, progress)

    def in_unit(form: SizedLayer) -> SizedLayer | None:
        scale = scales[form.name, form.family]
        return None if scale is None else form.in_units(scale)

    return [layer.with_solved(in_unit) for layer in layers]


def _cut_alone(form: SizedLayer, size: int) -> SizedNetwork:
    return SizedNetwork(f"layer '{form.name}' at size {size}", {form.name: (form.family, size)})


def _scale(form: SizedLayer, size: int, outcome: Outcome, progress: Progress) -> float | None:
    """Return what the outputs lose for a share of a layer's energy; None where it cannot be cut, which is said."""
    if not isinstance(outcome, UnsupportedLayerError):
        return outcome.distance / max(form.loss(size), LEAST_LOSS)
    if form.family is Family.LOW_RANK:
        raise outcome
    stays = "nodes" if form.family is Family.SELECTION else "heads"
    progress.note(f"compress: {outcome}: it keeps its {stays}")
    return None


def _typical(form: SizedLayer, share: float) -> int:
    """Return the size at which a layer is cut alone: about what the budget leaves it, where that loses something."""
    largest = form.at_share(share)
    losing = form.sizes[(form.losses >= LEAST_LOSS) & (form.sizes <= largest)]
    return int(losing[-1] if losing.size else form.sizes[0])


def _by_nats(layers: Layers, budget: float) -> dict[str, int] | None:
    """Return sizes by what the loss feels of each layer; None where that is not known of one."""
    felt = in_nats(layers)
    return None if felt is None else within_budget(felt, budget)


RULES: Mapping[str, Callable[[Layers, Layers, float], dict[str, int] | None]] = {
    "what the outputs lose": lambda scaled, _, budget: within_budget(scaled, budget),
    "nats by gradients": lambda _, raw, budget: _by_nats(raw, budget),
    "shares of energy": lambda _, raw, budget: within_budget(raw, budget),
    "the same share of each": lambda _, raw, budget: common_share(raw, budget),
    "the same energy of each": lambda _, raw, budget: common_energy(raw, budget),
}
"""Sizes within a budget: from layers with losses in the unit of the outputs, and the same with shares of energy.

None where a rule needs what is not known of the layers.
"""


def _candidates(layers: Sequence[Forms], scaled: Sequence[Forms], share: float, budget: float) -> Iterator[Candidate]:
    """Yield what is to be measured; a plan whose smallest sizes cost too much is passed over."""
    for words, plan in plans(scaled, share).items():
        ours, raw = in_forms(scaled, plan), in_forms(layers, plan)
        if _least(raw)[1] > budget:
            continue
        for rule, sizes_by in RULES.items():
            if (sizes := sizes_by(ours, raw, budget)) is None:
                continue
            smaller = {one.name: (one.family, sizes[one.name]) for one in ours if sizes[one.name] != one.whole}
            yield Candidate(words, rule, smaller, sum(one.loss(sizes[one.name]) for one in ours), float("nan"))


def _different(candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    seen: list[Sizes] = []
    for candidate in candidates:
        if candidate.sizes not in seen:
            seen.append(candidate.sizes)
            yield candidate
