"""A share of weights, of multiply-adds or of the network, shared out among layers: see `engine.sizes.choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from dalr_stream.engine.sizes.by_blocks import ByBlocks, ScoreAsked
from dalr_stream.engine.sizes.choice import networks_in_turn, networks_to_measure, require_affordable
from dalr_stream.engine.sizes.measuring import Sizes
from dalr_stream.engine.sizes.menus import Bench, InMemory, InTurn, Menu, choose_from
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, InvalidInputError
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.network.surgery.compress import Replacement, compress
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.progress import Progress
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.scores.scoring import Scoring, score_on
from dalr_stream.workflow.steps.sizes.compression import Choice, LayerSize
from dalr_stream.workflow.steps.sizes.stored_menus import any_of, methods_of_menus, plans_at_most, stored_menus
from dalr_stream.workflow.steps.sizes.whole_network import share_of_counted
from dalr_stream.workflow.steps.unseen import Unseen, output_distance

BuildInTurn = Callable[[Mapping[str, LayerSize]], nn.Module]
"""Gives the network with layers of these sizes, one compressed after the other."""


def within_budget(
    project: Project, store: StoreView, progress: Progress, in_turn: BuildInTurn | None = None
) -> tuple[dict[str, Replacement], dict[str, Method], Choice]:
    """Return what takes the place of each layer, by which method, and how that was chosen.

    With `in_turn` the best candidates are built by it, and chosen among as they then are. Raises ConfigError where the
    smallest sizes cost more than the budget.
    """
    menu, sizes, choice = _chosen(project, store, partial(_in_memory, project, progress), in_turn, progress)
    return menu.replacements(sizes), _methods(menu, sizes), choice


def sizes_by_blocks(
    project: Project, store: StoreView, fingerprint: str, progress: Progress, in_turn: BuildInTurn | None = None
) -> tuple[dict[str, LayerSize], Choice]:
    """Return the size of each layer and how that was chosen, no network ever whole; killed, the same call goes on.

    Raises as `within_budget` does.
    """
    bench = partial(_by_blocks, project, fingerprint, progress)
    menu, sizes, choice = _chosen(project, store, bench, in_turn, progress)
    methods = _methods(menu, sizes)
    return {name: LayerSize(methods[name], size) for name, (_, size) in sizes.items()}, choice


def networks_in_words(project: Project, store: StoreView) -> str:
    """Say how many networks are measured at most; `store` may be a prospect."""
    networks, section = networks_at_most(project, store), project.config.compress
    turned = turned_at_most(project, store)
    again = f", and {turned} of them once more with one layer compressed after the other" if turned else ""
    measured = f"measured on {section.samples:,} {Unseen.deciding(project.config)}"
    return f"at most {networks:,} networks, {measured}{again}"


def turned_at_most(project: Project, store: StoreView) -> int:
    """Return how many networks a budget is chosen among that are compressed layer after layer; 0 at once."""
    section = project.config.compress
    if not section.within_budget or section.order is not Order.SEQUENTIAL:
        return 0
    methods = methods_of_menus(project, store, project.layers_in(store))
    return networks_in_turn(narrows=any_of(Family.SELECTION, methods) or any_of(Family.HEADS, methods))


def networks_at_most(project: Project, store: StoreView) -> int:
    """Return how many networks are measured at most within a budget."""
    networks = 0
    for methods in methods_of_menus(project, store, project.layers_in(store)):
        forms = sum(map(len, methods.values()))
        networks += networks_to_measure(forms, plans_at_most([methods]))
    return networks


def _methods(menu: Menu, sizes: Sizes) -> dict[str, Method]:
    return {name: menu.method(name, family) for name, (family, _) in sizes.items()}


def _chosen(
    project: Project,
    store: StoreView,
    bench: Callable[[OutputDistance], Bench],
    in_turn: BuildInTurn | None,
    progress: Progress,
) -> tuple[Menu, Sizes, Choice]:
    """Return the menu and the sizes that are best as `bench` measures them."""
    section, menus = project.config.compress, stored_menus(project, store)
    progress.note(f"compress: {section.in_words}: {networks_in_words(project, store)}")
    with project.code.importing():
        _require_affordable(project, menus)
        distance, measured_on = output_distance(project)
        again = None if in_turn is None else _of_menus(in_turn)
        menu, choice = choose_from(menus, _share(project, menus), bench(distance), in_turn=again, progress=progress)
    return menu, choice.chosen.sizes, Choice.of(choice, section.distance, distance.samples, measured_on)


def _share(project: Project, menus: Sequence[Menu]) -> float:
    section = project.config.compress
    return share_of_counted(project, menus[0]) if section.rule == "network" else section.share


def _require_affordable(project: Project, menus: Sequence[Menu]) -> None:
    section = project.config.compress
    try:
        require_affordable(menus[0].forms, _share(project, menus))
    except InvalidInputError as error:
        unit = "multiply-adds a sample" if section.rule == "macs" else "weights"
        steps = "" if section.multiple_of is None else f", or lower compress.multiple_of = {section.multiple_of}"
        raise ConfigError(f"compress.{section.rule}, in {unit}: {error}{steps}") from None


def _in_memory(project: Project, progress: Progress, distance: OutputDistance) -> Bench:
    """Return what builds each network whole."""
    score = _score(project)

    def build(replacements: dict[str, Replacement]) -> nn.Module:
        return compress(project.network, replacements, example=project.structure or project.code.first_batch)

    return InMemory(build, distance, score, score is None or score.scale.higher, progress)


def _by_blocks(project: Project, fingerprint: str, progress: Progress, distance: OutputDistance) -> Bench:
    """Return what takes all networks through the blocks together."""
    score = _score(project)
    return ByBlocks(
        project.recorded,
        distance,
        project.measuring,
        project.config.network.blocks or True,
        None if score is None else ScoreAsked(score.question, score.samples, score.checked),
        score is None or score.scale.higher,
        progress,
        fingerprint,
    )


def _score(project: Project) -> Scoring | None:
    section = project.config.validation
    return None if section is None else score_on(project, "validation", section)


def _of_menus(build: BuildInTurn) -> InTurn:
    """Let what builds a network from the size of each layer build those of menus."""

    def built(menu: Menu, sizes: Sizes) -> nn.Module:
        return build({name: LayerSize(menu.method(name, of), size) for name, (of, size) in sizes.items()})

    return built
