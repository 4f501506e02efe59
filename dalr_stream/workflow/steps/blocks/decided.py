"""Which size each layer has of a network that goes block by block: as `sizes.sizing` decides, no network ever whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

from dalr_stream.engine.sizes.by_nats import smallest_by_nats
from dalr_stream.engine.sizes.measuring import Sizes
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.blocks.compress_into import Given
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.progress import Progress
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.compress_section import BY_NATS, Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.blocks.search_by_blocks import ScoresByBlocks, TriesByBlocks, score_of_menus
from dalr_stream.workflow.steps.named_sizes import named_layers, named_sizes, replacements
from dalr_stream.workflow.steps.sequential import choices_of, compressed_in_turn_by_blocks
from dalr_stream.workflow.steps.sizes.budget import BuildInTurn, sizes_by_blocks
from dalr_stream.workflow.steps.sizes.by_nats import FELT, menus_by_nats, smallest_scored
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize
from dalr_stream.workflow.steps.sizes.sizing import search_by, sizes_by_rule, solution_of

Decided = tuple[dict[str, int | float], Compression]
"""The size of each layer, or the share that is retained, and how it was decided."""


def decide_by_blocks(project: Project, store: StoreView, fingerprint: str, progress: Progress) -> Decided:
    """Return the size of each layer, and how it was decided; killed, the same call goes on."""
    section = project.config.compress
    if section.rule is None:
        return _named(project, store)
    menus = menus_by_nats(project, store) if section.rule in BY_NATS else []
    if section.within_budget:
        compression = _within_budget(project, store, fingerprint, progress)
    elif menus:
        compression = _by_nats(project, menus, fingerprint, progress)
    elif section.rule == "max_drop":
        scores = ScoresByBlocks.of(project, fingerprint, progress)
        search = search_by(project, store, partial(TriesByBlocks, scores))
        compression = Compression(section.in_words, _of_one_method(project, search.sizes), search=search)
    else:
        compression = Compression(section.in_words, _of_one_method(project, sizes_by_rule(project, store)))
    compression = dataclasses.replace(compression, asked=len(project.layers))
    return {layer: one.size for layer, one in compression.layers.items()}, compression


def cut_from_store(
    project: Project, store: StoreView, layer: str, method: Method, size: float
) -> tuple[Given, list[str]]:
    """Return what takes the place of one layer, and what was warned of on the way."""
    return cut(layer, solution_of(project, store, layer, method), size, project.config.solve.restore_ridge)


def cut(layer: str, solution: Solution, size: float, restore_ridge: float) -> tuple[Given, list[str]]:
    """Return a solution at a size, or at a share that is retained, and what was warned of on the way."""
    replaced, warned = replacements({layer: solution}, {layer: size}, restore_ridge)
    return replaced[layer], warned


def size_of(record: Given) -> int:
    """Return the rank, the number of nodes, or that of the dimensions of each head."""
    return record.size if isinstance(record, SelectedNodes | NarrowedHeads) else record.rank


def _named(project: Project, store: StoreView) -> Decided:
    sizes = named_sizes(project, store)
    methods = {layer: choice.method for layer, choice in named_layers(project, project.layers).items()}
    for layer in [layer for layer, size in sizes.items() if isinstance(size, float)]:  # a share that is retained
        sizes[layer] = size_of(cut_from_store(project, store, layer, methods[layer], sizes[layer])[0])
    layers = {layer: LayerSize(methods[layer], int(size)) for layer, size in sizes.items()}
    return sizes, Compression("as named", layers, asked=len(project.layers))


def _of_one_method(project: Project, sizes: Mapping[str, int]) -> dict[str, LayerSize]:
    return {layer: LayerSize(project.config.compress_method, size) for layer, size in sizes.items()}


def _within_budget(project: Project, store: StoreView, fingerprint: str, progress: Progress) -> Compression:
    section = project.config.compress
    in_turn: BuildInTurn | None = None
    if section.order is Order.SEQUENTIAL:  # a network is there until the next one is made
        in_turn = lambda sizes: compressed_in_turn_by_blocks(project, choices_of(project, store, sizes))  # noqa: E731
    layers, choice = sizes_by_blocks(project, store, fingerprint, progress, in_turn)
    return Compression(section.in_words, layers, choice=choice)


def _by_nats(project: Project, menus: Sequence[Menu], fingerprint: str, progress: Progress) -> Compression:
    """Return sizes by what the loss feels of all layers."""
    section = project.config.compress
    if section.rule == "energy":
        menu, sizes = smallest_by_nats(menus, section.share)
        return Compression(f"{section.in_words} {FELT}", _of_menu(menu, sizes))
    scores = ScoresByBlocks.of(project, fingerprint, progress)
    with project.code.importing():
        score = partial(score_of_menus, scores)
        found, sizes, record = smallest_scored(project, menus, score, scores.score.scale, progress)
    layers = {} if found is None else _of_menu(found, sizes)
    return Compression(f"{section.in_words}, by what the loss feels", layers, by_nats=record)


def _of_menu(menu: Menu, sizes: Sizes) -> dict[str, LayerSize]:
    return {layer: LayerSize(menu.method(layer, family), size) for layer, (family, size) in sizes.items()}
