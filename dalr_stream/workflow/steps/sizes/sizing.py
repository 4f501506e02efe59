"""Which size each layer of the saved network has: named one by one, or by one rule for all of them.

A share of each layer's energy, singular values or full rank reads the training moments of the target alone; where
gradients of every layer are known, a share of energy is one of what the loss feels of all layers (`by_nats`). A share
of weights, multiply-adds or the network weighs layers and families against one another, and measures (`budget`). A
rule for the loss of score searches on validation: by nats where they are known, and else by trying every layer's next
smaller size (`search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.lowrank.grouped import Factors, GroupedPair
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.allocation import by_energy, uniform
from dalr_stream.numerics.sizes.head_layer import head_layer
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, as_they_are
from dalr_stream.numerics.sizes.solved_layers import factor_layer, selection_layer
from dalr_stream.numerics.sizes.spectrum import rank_by_singular_values
from dalr_stream.progress import Progress
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.compress_section import BY_NATS, CompressSection
from dalr_stream.workflow.runfile.labelled_sections import LabelledSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import choices, named_layers, replacements, require_solved
from dalr_stream.workflow.steps.scores.scoring import Evaluator, score_on, sizes_to_try
from dalr_stream.workflow.steps.sizes.budget import BuildInTurn, within_budget
from dalr_stream.workflow.steps.sizes.by_nats import FELT, keep_score, keep_share, menus_by_nats
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize
from dalr_stream.workflow.steps.sizes.kept_solutions import KeptSolutions
from dalr_stream.workflow.steps.sizes.search import InMemory, Search, Tries, joint_search


def decide(
    project: Project, store: StoreView, progress: Progress, in_turn: BuildInTurn | None = None
) -> tuple[dict[str, Replacement], Compression]:
    """Return what the [compress] section puts in place of each layer, and how that was decided.

    `in_turn` builds the networks that a budget is chosen among where layers are compressed one after the other.

    Raises ConfigError for a layer or a method that was not solved, InvalidInputError for a budget that is too small.
    """
    section = project.config.compress
    search = choice = by_nats = None
    rule, notes = section.in_words, list[str]()
    if section.rule is None:
        rule = "as named"
        replaced, notes = choices(project, store)
        methods = {layer: named.method for layer, named in named_layers(project, project.layers).items()}
    elif section.within_budget:
        replaced, methods, choice = within_budget(project, store, progress, in_turn)
    elif section.rule in BY_NATS and (menus := menus_by_nats(project, store)):
        rule += f" {FELT}" if section.rule == "energy" else ", by what the loss feels"
        if section.rule == "energy":
            replaced, methods = keep_share(project, menus)
        else:
            replaced, methods, by_nats = keep_score(project, menus, progress)
    else:
        replaced, methods, notes, search = _by_one_method(project, store, progress)
    layers = {
        layer: LayerSize(methods[layer], record.rank if isinstance(record, LowRankLayer | GroupedPair) else record.size)
        for layer, record in replaced.items()
    }
    asked = len(project.layers)
    return replaced, Compression(rule, layers, tuple(notes), search, choice=choice, asked=asked, by_nats=by_nats)


def _by_one_method(
    project: Project, store: StoreView, progress: Progress
) -> tuple[dict[str, Replacement], dict[str, Method], list[str], Search | None]:
    """Return what a rule puts in place of each layer that it decides by itself, or that a search finds."""
    section, method, search = project.config.compress, project.config.compress_method, None
    layers = layers_by(project, store, method)
    for layer in layers:
        require_solved(project, store, layer, method)
    solutions = _solutions(project, store, method, layers)
    if section.rule == "max_drop":
        search = _search(project, store, method, solutions, progress)
        sizes = search.sizes
    else:
        sizes = _by_rule(project, store, solutions)
    smaller = OnDemand([layer for layer in layers if layer in sizes], solutions.fetch)
    replaced, notes = replacements(smaller, sizes, project.config.solve.restore_ridge)
    return replaced, dict.fromkeys(replaced, method), notes, search


def layers_by(project: Project, store: StoreView, method: Method) -> tuple[str, ...]:
    """Return the layers that have a size of their own by a method: those of an attention have that of its heads."""
    if method.family is not Family.HEADS:
        return project.layers
    within = {name for layout in store.heads.values() for name in layout.layers[:-1]}
    return tuple(layer for layer in project.layers if layer not in within)


def sizes_by_rule(project: Project, store: StoreView) -> dict[str, int]:
    """Return the sizes of a rule that asks of each layer by itself; layers that stay as they are are left out."""
    method = project.config.compress_method
    layers = layers_by(project, store, method)
    for layer in layers:
        require_solved(project, store, layer, method)
    return _by_rule(project, store, _solutions(project, store, method, layers))


def _solutions(project: Project, store: StoreView, method: Method, layers: Sequence[str]) -> OnDemand[str, Solution]:
    kept = KeptSolutions(store, project.room_for_solutions)
    return OnDemand(layers, partial(kept, method=method))


def solution_of(project: Project, store: StoreView, layer: str, method: Method) -> Solution:
    """Return one solution of a layer; raises ConfigError where the method was not solved for it."""
    require_solved(project, store, layer, method)
    return store.solutions(layer, [method])[method]


def sized_layer(project: Project, store: StoreView, layer: str, solution: Solution) -> SizedLayer:
    """Return a layer with what it loses at each size of a solution; its cost is in weights."""
    if isinstance(solution, HeadFactors):
        attention = store.attention(layer, project.config.solve.target)
        return head_layer(layer, solution, attention, store.shape(layer))
    if isinstance(solution, ChannelSelection):
        return selection_layer(layer, solution, store.shape(layer))
    return factor_layer(layer, solution, store.inputs(project.config.solve.target, layer))


def size_by_rule(
    section: CompressSection, name: str, solution: Factors | ChannelSelection, shape: LayerShape, problem: Layer
) -> int | None:
    """Return the size that keeps a rule's share of one layer; None where that is the layer as it is."""
    if isinstance(solution, ChannelSelection):
        layer = selection_layer(name, solution, shape)
    else:
        layer = factor_layer(name, solution, problem.known_inputs)
    return _by_share(section, [layer], {name: solution}).get(name)


def _by_rule(project: Project, store: StoreView, solutions: Mapping[str, Solution]) -> dict[str, int]:
    """Return the sizes that keep a share of each layer; layers that stay as they are are left out."""
    layers = [sized_layer(project, store, layer, solution) for layer, solution in solutions.items()]
    return _by_share(project.config.compress, layers, solutions)


def _by_share(section: CompressSection, layers: list[SizedLayer], solutions: Mapping[str, Solution]) -> dict[str, int]:
    if section.multiple_of is not None:
        layers = [layer.multiples_of(section.multiple_of) for layer in layers]
    if section.rule == "singular_values":
        sizes = {layer.name: _by_singular_values(layer, solutions[layer.name], section.share) for layer in layers}
    else:
        sizes = (by_energy if section.rule == "energy" else uniform)(layers, section.share)
    whole = as_they_are(layers)
    return {layer: size for layer, size in sizes.items() if size != whole[layer]}


def _by_singular_values(layer: SizedLayer, solution: Solution, share: float) -> int:
    """Return the smallest of a layer's ranks that keeps the share; itself where only ranks above break-even do."""
    if isinstance(solution, ChannelSelection | HeadFactors):
        what = "a selection" if isinstance(solution, ChannelSelection) else "one of heads"
        raise ConfigError(
            f"compress.singular_values: layer '{layer.name}' is compressed by '{solution.method.value}', {what}, which "
            "has none: name a low-rank method as compress.method, or give 'energy'"
        )
    wanted = rank_by_singular_values(solution, share)
    return int(layer.sizes[min(int(np.searchsorted(layer.sizes, wanted)), layer.sizes.size - 1)])


def _search(
    project: Project, store: StoreView, method: Method, solutions: Mapping[str, Solution], progress: Progress
) -> Search:
    candidates = _sizes_to_search(project, store, method, solutions)
    with project.code.importing():
        score = score_on(project, "validation", _validation(project))
        tries = InMemory(Evaluator.of(project, _validation(project), score, progress), solutions)
        return joint_search(tries, candidates, project.config.compress.share)


def search_by(project: Project, store: StoreView, tries: Callable[[Mapping[str, Solution]], Tries]) -> Search:
    """Return the search of one method's sizes, where `tries` scores networks of its solutions."""
    method = project.config.compress_method
    layers = layers_by(project, store, method)
    for layer in layers:
        require_solved(project, store, layer, method)
    solutions = _solutions(project, store, method, layers)
    candidates = _sizes_to_search(project, store, method, solutions)
    with project.code.importing():
        return joint_search(tries(solutions), candidates, project.config.compress.share)


def _validation(project: Project) -> LabelledSection:
    if project.config.validation is None:
        raise ConfigError("compress.max_drop: needs a [validation] section")
    return project.config.validation


def _sizes_to_search(project: Project, store: StoreView, method: Method, layers: Iterable[str]) -> dict[str, list[int]]:
    ranks, step = _validation(project).ranks, project.config.compress.multiple_of or 1
    return {
        layer: [
            size
            for size in sizes_to_try(method, store.shape(layer), ranks)
            if size % step == 0 and size < store.shape(layer).outputs
        ]
        for layer in layers
    }
