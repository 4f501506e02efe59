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
from contextlib import contextmanager
from dataclasses import dataclass

from scipy import stats
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import common_energy, common_share, within_budget
from dalr_stream.numerics.sizes.families import Forms, in_forms, plans
from dalr_stream.numerics.sizes.nats import in_nats
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, as_they_are, cost
from dalr_stream.progress import Progress, Silent

LEAST_LOSS = 1e-6
"""A share of energy from which a scale may be taken: below it the curve is rounding."""

Sizes = Mapping[str, tuple[Family, int]]
"""Layer -> its form and size; layers as they are left out."""
Networks = Callable[[Sizes], nn.Module]
"""Gives the network with layers of these sizes."""
Measure = Callable[[nn.Module], float]
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


@dataclass(frozen=True, slots=True)
class Judge:
    """By what candidates are compared: the distance of their outputs; a score, where there is one, and then that."""

    distance: Measure
    score: Measure | None = None
    higher: bool = True
    """Whether more of the score is better."""

    def measured(self, candidate: Candidate, small: nn.Module) -> Candidate:
        """Return a candidate with what its network is measured at; raises NonFiniteError, which names it."""
        with _named(f"{candidate.plan} by {candidate.rule}"):
            gap = self.distance(small)
        return dataclasses.replace(candidate, distance=gap, score=self.score(small) if self.score else None)

    def ranked(self, candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """Return the candidates, the best first."""
        return tuple(sorted(candidates, key=self._badness))

    def _badness(self, one: Candidate) -> tuple[float, float]:
        return (0.0 if one.score is None else -one.score if self.higher else one.score), one.distance


def choose_sizes(
    layers: Sequence[Forms],
    share: float,
    networks: Networks,
    distance: Measure,
    *,
    score: Measure | None = None,
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
    networks
        Builds the network with some layers smaller.
    distance
        How far a network's outputs are from the original's, as `OutputDistance` measures it.
    score
        Where it is given it chooses, and the distance among equals.
    higher
        Whether more of the score is better.

    Raises InvalidInputError where the smallest sizes cost more than the budget, NonFiniteError where a network's
    outputs are not finite. Cost: a network for each form of each layer, and one for each candidate, at most 30.
    """
    require_affordable(layers, share)
    judge, watch = Judge(distance, score, higher), progress or Silent()
    scaled = _in_one_unit(layers, share, networks, distance, watch)
    whole = [layer.unchanged for layer in layers]
    budget = share * float(cost(whole, as_they_are(whole)))
    wanted = list(_different(_candidates(layers, scaled, share, budget)))
    measured = []
    with watch.track("compress: candidates", len(wanted), "networks") as advance:
        for candidate in wanted:
            measured.append(judge.measured(candidate, networks(candidate.sizes)))
            advance(1)
    return SizeChoice(judge.ranked(measured))


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


def _in_one_unit(
    layers: Sequence[Forms], share: float, networks: Networks, distance: Measure, progress: Progress
) -> list[Forms]:
    """Return the layers with losses in the unit of `distance`: each form of each layer is cut alone, once.

    Nodes that turn out to be needed, as where the network's own input is added to them, are not selected.
    """
    forms = sum(len(layer.solved) for layer in layers)
    with progress.track("compress: one layer at a time", forms, "networks") as advance:

        def in_unit(form: SizedLayer) -> SizedLayer | None:
            size = _typical(form, share)
            advance(1)
            if size == form.whole:
                return form.in_units(0.0)
            try:
                small = networks({form.name: (form.family, size)})
            except UnsupportedLayerError as error:
                if form.family is Family.LOW_RANK:
                    raise
                stays = "nodes" if form.family is Family.SELECTION else "heads"
                progress.note(f"compress: {error}: it keeps its {stays}")
                return None
            with _named(f"layer '{form.name}' at size {size}"):
                alone = distance(small)
            return form.in_units(alone / max(form.loss(size), LEAST_LOSS))

        return [layer.with_solved(in_unit) for layer in layers]


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say which network's outputs are not finite."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{what}: {error}") from None


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
