"""A share of weights, of multiply-adds or of the network, shared out among layers: see `engine.sizes.choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.sizes.choice import Judge, Sizes, networks_in_turn, networks_to_measure, require_affordable
from dalr_stream.engine.sizes.forms import SolvedLayer
from dalr_stream.engine.sizes.menus import InTurn, Menu, choose_from
from dalr_stream.engine.sizes.sizes import WEIGHTED_IN_WORDS
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, InvalidInputError
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.network.surgery.compress import Replacement, compress
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.families import PLANS
from dalr_stream.progress import Progress
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import at_size, named_layers
from dalr_stream.workflow.steps.scores.scoring import score_on
from dalr_stream.workflow.steps.sizes.compression import Choice, LayerSize
from dalr_stream.workflow.steps.sizes.kept_solutions import KeptSolutions
from dalr_stream.workflow.steps.sizes.whole_network import neighbours, share_of_counted

BuildInTurn = Callable[[Mapping[str, LayerSize]], nn.Module]
"""Gives the network with layers of these sizes, one compressed after the other."""
Methods = Mapping[str, Sequence[Method]]
"""By layer, at most one of each family."""


def within_budget(
    project: Project, store: StoreView, progress: Progress, in_turn: BuildInTurn | None = None
) -> tuple[dict[str, Replacement], dict[str, Method], Choice]:
    """Return what takes the place of each layer, by which method, and how that was chosen.

    With `in_turn` the best candidates are built by it, and chosen among as they then are. Raises ConfigError where the
    smallest sizes cost more than the budget.
    """
    section, kept = project.config.compress, KeptSolutions(store, project.room_for_solutions)
    menus = list[Menu]()
    for words, methods in zip(("", f", {WEIGHTED_IN_WORDS}"), _menus(project, store, project.layers), strict=False):
        solutions = _Stored(kept, methods, project.config.solve.restore_ridge)
        menus.append(_menu(project, store, solutions, words))
    progress.note(f"compress: {section.in_words}: {networks_in_words(project, store)}")
    with project.code.importing():
        menu, sizes, choice = _choose(project, menus, in_turn, progress)
    chosen = {name: menu.method(name, family) for name, (family, _) in sizes.items()}
    return menu.replacements(sizes), chosen, choice


@dataclass(frozen=True, slots=True)
class _Stored:
    """Solutions in a store."""

    kept: KeptSolutions
    methods: Methods
    restore_ridge: float

    def method(self, layer: str, family: Family) -> Method:
        return next(method for method in self.methods[layer] if method.family is family)

    def at_size(self, layer: str, family: Family, size: int) -> Replacement:
        return at_size(self.kept(layer, self.method(layer, family)), size, layer, self.restore_ridge)

    def families(self, layer: str) -> list[Family]:
        return [method.family for method in self.methods[layer]]

    def of(self, layer: str) -> dict[Family, Solution]:
        return {method.family: self.kept(layer, method) for method in self.methods[layer]}


def _menu(project: Project, store: StoreView, solutions: _Stored, words: str) -> Menu:
    """Return what each layer loses at every size, and beside those to compress the ones that get narrower with them."""
    section, others = project.config.compress, dict[str, SolvedLayer]()
    if section.rule == "network":
        selected = [layer for layer in project.layers if Family.SELECTION in solutions.families(layer)]
        others = neighbours(project, project.layers, selected)

    def solved(layer: str) -> SolvedLayer:
        return others[layer] if layer in others else solved_layer(project, store, layer, solutions.of(layer))

    layers = OnDemand((*project.layers, *others), solved)
    return Menu.of(solutions, layers, project.structure, section.multiple_of or 1, words)


def networks_in_words(project: Project, store: StoreView) -> str:
    """Say how many networks are measured at most; `store` may be a prospect."""
    networks, section = networks_at_most(project, store), project.config.compress
    turned = turned_at_most(project, store)
    again = f", and {turned} of them once more with one layer compressed after the other" if turned else ""
    measured = f"measured on {section.samples:,} samples of '{project.config.solve.target}'"
    return f"at most {networks:,} networks, {measured}{again}"


def turned_at_most(project: Project, store: StoreView) -> int:
    """Return how many networks a budget is chosen among that are compressed layer after layer; 0 at once."""
    section = project.config.compress
    if not section.within_budget or section.order is not Order.SEQUENTIAL:
        return 0
    return networks_in_turn(selects=_selects(_menus(project, store, project.layers_in(store))))


def networks_at_most(project: Project, store: StoreView) -> int:
    """Return how many networks are measured at most within a budget."""
    networks = 0
    for methods in _menus(project, store, project.layers_in(store)):
        forms = sum(map(len, methods.values()))
        networks += networks_to_measure(forms, len(PLANS) if _selects([methods]) else 1)
    return networks


def _selects(menus: Sequence[Mapping[str, Sequence[Method]]]) -> bool:
    named = [method for menu in menus for methods in menu.values() for method in methods]
    return any(method.family is Family.SELECTION for method in named)


def rows_a_sample(project: Project, store: StoreView, layer: str) -> float:
    """Return how often a sample takes the layer's multiply-adds; the rows that were kept may be a choice of them."""
    drawn = project.config.capture.most_per_sample is not None
    if drawn or store.record(layer).kind in {"Conv1d", "Conv2d"}:
        return project.positions[layer]
    moments = store.inputs(project.config.solve.target, layer)
    return moments.count / moments.samples


def _menus(project: Project, store: StoreView, layers: Sequence[str]) -> list[Methods]:
    """Return the methods by which each layer may be compressed, one of a family at most; and the weighted ones."""
    config, named = project.config, named_layers(project, layers)
    plain: dict[str, list[Method]] = {}
    weighted: dict[str, list[Method]] = {}
    for layer in layers:
        own = named[layer].method if layer in named else config.compress.method
        applicable = project.methods(store, layer)
        wanted = tuple(method for method in config.methods_within_budget(own) if method in applicable)
        plain[layer] = list(wanted if own is None else wanted[:1])
        weighted[layer] = list(config.weighted_within_budget(wanted)) if own is None else plain[layer]
    return [plain] if weighted == plain else [plain, weighted]


def solved_layer(project: Project, store: StoreView, layer: str, by_family: Mapping[Family, Solution]) -> SolvedLayer:
    """Return what is known of one layer, for its losses, from one solution of each family at most: it is not held."""
    factors, selection = by_family.get(Family.LOW_RANK), by_family.get(Family.SELECTION)
    target, known = project.config.solve.target, store.layer(layer, project.config.solve.target, None)
    return SolvedLayer(
        store.shape(layer),
        cast("Factors | None", factors),
        None if factors is None else store.inputs(target, layer),
        cast("ChannelSelection | None", selection),
        rows_a_sample(project, store, layer) if project.config.compress.rule == "macs" else 1.0,
        project.config.solve.restore_ridge,
        known.gradients,
        known.readers,
    )


def _choose(
    project: Project, menus: Sequence[Menu], in_turn: BuildInTurn | None, progress: Progress
) -> tuple[Menu, Sizes, Choice]:
    section, validation = project.config.compress, project.config.validation
    share = share_of_counted(project, menus[0]) if section.rule == "network" else section.share
    try:
        require_affordable(menus[0].forms, share)
    except InvalidInputError as error:
        unit = "multiply-adds a sample" if section.rule == "macs" else "weights"
        steps = "" if section.multiple_of is None else f", or lower compress.multiple_of = {section.multiple_of}"
        raise ConfigError(f"compress.{section.rule}, in {unit}: {error}{steps}") from None
    batches = project.code.batches(project.config.solve.target)
    distance = OutputDistance(
        project.network, batches, samples=section.samples, rows=project.code.rows, distance=section.distance
    )
    score = None if validation is None else score_on(project, "validation", validation)

    def build(replacements: dict[str, Replacement]) -> nn.Module:
        return compress(project.network, replacements, example=project.structure or project.code.first_batch)

    judge = Judge(distance, score, score is None or score.scale.higher)
    again = None if in_turn is None else _of_menus(in_turn)
    menu, choice = choose_from(menus, share, build, judge, in_turn=again, progress=progress)
    return menu, choice.chosen.sizes, Choice.of(choice, section.distance, distance.samples)


def _of_menus(build: BuildInTurn) -> InTurn:
    """Let what builds a network from the size of each layer build those of menus."""

    def built(menu: Menu, sizes: Sizes) -> nn.Module:
        return build({name: LayerSize(menu.method(name, of), size) for name, (of, size) in sizes.items()})

    return built
