"""The solutions of a store as menus: what each layer loses at every size, by the methods it may be compressed by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.sizes.forms import SolvedLayer
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.engine.sizes.solver import WEIGHTED_IN_WORDS
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.families import plan_names
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import at_size, named_layers
from dalr_stream.workflow.steps.sizes.kept_solutions import KeptSolutions
from dalr_stream.workflow.steps.sizes.whole_network import neighbours

Methods = Mapping[str, Sequence[Method]]
"""By layer, at most one of each family."""


def stored_menus(project: Project, store: StoreView) -> list[Menu]:
    """Return what each layer loses at every size: by the plain methods, and by those weighted by gradients."""
    kept = KeptSolutions(store, project.room_for_solutions)
    menus = list[Menu]()
    for words, methods in zip(
        ("", f", {WEIGHTED_IN_WORDS}"), methods_of_menus(project, store, project.layers), strict=False
    ):
        solutions = _StoredSolutions(kept, methods, project.config.solve.restore_ridge)
        menus.append(_menu(project, store, solutions, words))
    return menus


@dataclass(frozen=True, slots=True)
class _StoredSolutions:
    """As `Menu` takes them."""

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


def _menu(project: Project, store: StoreView, solutions: _StoredSolutions, words: str) -> Menu:
    """Return what each layer loses at every size, and beside those to compress the ones that get narrower with them."""
    section, others = project.config.compress, dict[str, SolvedLayer]()
    if section.rule == "network":
        selected = [layer for layer in project.layers if Family.SELECTION in solutions.families(layer)]
        others = neighbours(project, project.layers, selected)

    def solved(layer: str) -> SolvedLayer:
        return others[layer] if layer in others else solved_layer(project, store, layer, solutions.of(layer))

    layers = OnDemand((*project.layers, *others), solved)
    return Menu.of(solutions, layers, project.groups, section.multiple_of or 1, words)


def rows_a_sample(project: Project, store: StoreView, layer: str) -> float:
    """Return how often a sample takes the layer's multiply-adds; the rows that were kept may be a choice of them."""
    drawn = project.config.capture.most_per_sample is not None
    if drawn or store.record(layer).kind in {"Conv1d", "Conv2d"}:
        return project.positions[layer]
    moments = store.inputs(project.config.solve.target, layer)
    return moments.count / moments.samples


def methods_of_menus(project: Project, store: StoreView, layers: Sequence[str]) -> list[Methods]:
    """Return the methods by which each layer may be compressed, one of a family at most; and the weighted ones."""
    config, named, available = project.config, named_layers(project, layers), partial(project.methods, store)
    within = {name for layout in store.heads.values() for name in layout.layers[:-1]}
    plain: dict[str, list[Method]] = {}
    weighted: dict[str, list[Method]] = {}
    for layer in layers:
        own = named[layer].method if layer in named else config.compress.method
        applicable = () if layer in within and own is not None and own.family is Family.HEADS else available(layer)
        wanted = tuple(method for method in config.methods_within_budget(own) if method in applicable)
        plain[layer] = list(wanted if own is None else wanted[:1])
        weighted[layer] = list(config.weighted_within_budget(wanted)) if own is None else plain[layer]
    return [plain] if weighted == plain else [plain, weighted]


def solved_layer(project: Project, store: StoreView, layer: str, by_family: Mapping[Family, Solution]) -> SolvedLayer:
    """Return what is known of one layer, for its losses, from one solution of each family at most: it is not held."""
    factors, selection, heads = map(by_family.get, (Family.LOW_RANK, Family.SELECTION, Family.HEADS))
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
        cast("HeadFactors | None", heads),
        {} if heads is None else store.attention(layer, target),
    )


def plans_at_most(menus: Sequence[Methods]) -> int:
    """Return how many ways there are to divide layers among the families of their methods."""
    return len(plan_names(selects=any_of(Family.SELECTION, menus), narrows=any_of(Family.HEADS, menus)))


def any_of(family: Family, menus: Sequence[Methods]) -> bool:
    """Tell whether any layer may be compressed by a method of a family."""
    return any(method.family is family for menu in menus for methods in menu.values() for method in methods)
