"""Which size each layer of the saved network has: named one by one, or by one rule for all of them.

Rules that need no network read the training moments of the target alone: a share of the weights or of the
multiply-adds (`numerics.allocation`), of the energy, of the full rank. A rule for the loss of score searches on
validation (`search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, InvalidInputError
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.nodes import ChannelSelection, SelectedNodes
from dalr_stream.numerics.sizes.allocation import (
    SizedLayer,
    Source,
    as_they_are,
    by_energy,
    cost,
    factor_layer,
    selection_layer,
    uniform,
    within_budget,
)
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.progress import Progress
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.compress_section import CompressSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import choices, named_layers, replacements, require_solved
from dalr_stream.workflow.steps.scores.scoring import Evaluator, score_on, sizes_to_try
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize
from dalr_stream.workflow.steps.sizes.search import Search, joint_search


def decide(project: Project, store: StoreView, progress: Progress) -> tuple[dict[str, Replacement], Compression]:
    """Return what the [compress] section puts in place of each layer, and how that was decided.

    Raises ConfigError for a layer or a method that was not solved, InvalidInputError for a budget that is too small.
    """
    section = project.config.compress
    search = None
    if section.rule is None:
        rule = "as named"
        replaced, notes = choices(project, store)
        methods = {layer: choice.method for layer, choice in named_layers(project, project.layers).items()}
    else:
        rule, method = f"{section.rule} {section.share:.4g}", project.config.compress_method
        solutions = {layer: solution_of(project, store, layer, method) for layer in project.layers}
        if section.rule == "max_drop":
            search = _search(project, store, solutions, progress)
            sizes = search.sizes
        else:
            sizes = _by_rule(project, store, solutions)
        small = {layer: solution for layer, solution in solutions.items() if layer in sizes}
        replaced, notes = replacements(small, sizes, project.config.solve.restore_ridge)
        methods = dict.fromkeys(replaced, method)
    layers = {
        layer: LayerSize(methods[layer], record.size if isinstance(record, SelectedNodes) else record.rank)
        for layer, record in replaced.items()
    }
    return replaced, Compression(rule, layers, tuple(notes), search, asked=len(project.layers))


def solution_of(project: Project, store: StoreView, layer: str, method: Method) -> Solution:
    """Return one solution of a layer; raises ConfigError where the method was not solved for it."""
    require_solved(project, store, layer, method)
    return store.solutions(layer, [method])[method]


def sized_layers(
    project: Project, store: StoreView, solutions: Mapping[str, Solution], *, macs: bool = False
) -> list[SizedLayer]:
    """Return every layer with what it loses at each size; costs are multiply-adds a sample, or weights."""
    target = project.config.solve.target
    sources = {
        reader.span.layer: Source(layer, reader.weights // store.shape(reader.span.layer).outputs)
        for layer, solution in solutions.items()
        for reader in store.readers(layer)
        if reader.span.layer in solutions and isinstance(solution, ChannelSelection)
    }
    sized = []
    for layer, solution in solutions.items():
        moments = store.inputs(target, layer)
        positions = _positions(project, store, layer, moments) if macs else 1.0
        reads = sources.get(layer)
        if isinstance(solution, ChannelSelection):
            sized.append(selection_layer(layer, solution, store.shape(layer), reads=reads, positions=positions))
        else:
            sized.append(factor_layer(layer, solution, moments, reads=reads, positions=positions))
    return sized


def _positions(project: Project, store: StoreView, layer: str, moments: InputMoments) -> float:
    """Return how often a sample takes the layer's multiply-adds; the rows that were kept may be a choice of them."""
    drawn = project.config.capture.most_per_sample is not None
    if drawn or store.record(layer).kind in {"Conv1d", "Conv2d"}:
        return project.positions[layer]
    return moments.count / moments.samples


def _by_rule(project: Project, store: StoreView, solutions: Mapping[str, Solution]) -> dict[str, int]:
    """Return the sizes that a rule decides from moments; layers that stay as they are left out."""
    section = project.config.compress
    layers = sized_layers(project, store, solutions, macs=section.rule == "macs")
    if section.multiple_of is not None:
        layers = [layer.multiples_of(section.multiple_of) for layer in layers]
    whole = as_they_are(layers)
    if section.rule == "energy":
        sizes = by_energy(layers, section.share)
    elif section.rule == "ratio":
        sizes = uniform(layers, section.share)
    else:
        sizes = _within_share(layers, float(cost(layers, whole)), section)
    return {layer: size for layer, size in sizes.items() if size != whole[layer]}


def _within_share(layers: Sequence[SizedLayer], whole: float, section: CompressSection) -> dict[str, int]:
    try:
        return within_budget(layers, section.share * whole)
    except InvalidInputError as error:
        unit = "multiply-adds a sample" if section.rule == "macs" else "weights"
        steps = "" if section.multiple_of is None else f", or lower compress.multiple_of = {section.multiple_of}"
        raise ConfigError(f"compress.{section.rule}, in {unit}: {error}{steps}") from None


def _search(project: Project, store: StoreView, solutions: Mapping[str, Solution], progress: Progress) -> Search:
    section = project.config.compress
    validation = project.config.validation
    if validation is None:
        raise ConfigError("compress.max_drop: needs a [validation] section")
    step = section.multiple_of or 1
    candidates = {
        layer: [
            size
            for size in sizes_to_try(solution.method, store.shape(layer), validation.ranks)
            if size % step == 0 and size < store.shape(layer).outputs
        ]
        for layer, solution in solutions.items()
    }
    score = score_on(project, "validation", validation)
    evaluator = Evaluator.of(project, validation, score, progress)
    with project.code.importing():
        return joint_search(evaluator, solutions, candidates, section.share)
