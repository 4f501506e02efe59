"""What every step of a run holds at its peak, beside the process and the network: for `estimate`, dry runs and a limit.

Folding and solving are arithmetic, and held against measurements. Where the network runs, what a forward pass holds is
looked at on one batch; gradients, optimisers and copies of the network are counted from its weights. `--memory` is for
all of them: folding and solving find other ways where it is short, a step that has none is refused with what would take
less, before anything is recorded. Libraries belong to the process, the one that draws the report among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dalr_stream.engine.sequential.blocks.estimate import BlockSequenceCost
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import MemoryLimitError
from dalr_stream.network.blocks.pieces import Pieces, largest_piece_bytes
from dalr_stream.network.capture.batches import LABELS, few_samples, labelled, refusals_explained
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.measure.memory import ForwardMemory, forward_memory, memory_within, weights_bytes
from dalr_stream.network.measure.output_distance import measuring_bytes
from dalr_stream.network.structure.graph import EXAMPLES
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.streaming.cost import in_mib
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.solving_cost import (
    SMALL_THINGS,
    SolvedLayer,
    curves_bytes,
    replacement_bytes,
    report_bytes,
    selection_bytes,
    solution_bytes,
)
from dalr_stream.streaming.solving_plan import SolvingPlan
from dalr_stream.workflow.runfile.labelled_sections import LabelledSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.sections import DataSection
from dalr_stream.workflow.sequence_cost import SequenceCost, sequence_cost
from dalr_stream.workflow.steps import cross
from dalr_stream.workflow.steps.blocks.networks import compresses_by_blocks, scores_by_blocks
from dalr_stream.workflow.steps.solving.solving_plan import solving_from
from dalr_stream.workflow.steps.unseen import Unseen

ACCURACY = "accuracy"
FROM_STORE = ("compress", "finetune", "evaluate")
"""The verbs that may start from what an earlier command left."""
FIGURES_BYTES = 32 * 2**20
"""As they are drawn, six of a layer at 150 dots an inch; measured."""
ADAM = 3
"""Beside the weights that are trained: gradients, and the two means of Adam."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """One step, or what a step does of its own."""

    step: str
    peak_bytes: int
    what: str
    """What it is made of, in words."""
    remedies: tuple[str, ...] = ()
    """What would take less; none for a step that is kept to a limit by a plan of its own."""

    def require(self, limit: int) -> None:
        """Raise MemoryLimitError, with what would take less, where the step does not fit."""
        if self.remedies and self.peak_bytes > limit:
            raise MemoryLimitError(
                f"step '{self.step}': {self.what} take {in_mib(self.peak_bytes)}, the limit is {in_mib(limit)}: "
                + "; ".join((*self.remedies, "or raise the limit"))
            )


def step_memory(
    project: Project,
    network: nn.Module,
    cost: MemoryPlan,
    solving: SolvingPlan,
    sequence: SequenceCost | BlockSequenceCost | None,
) -> list[StepMemory]:
    """Return the peak of each step that the run file asks for, in order; any weights will do."""
    with project.code.importing():
        later = (*_compress(project, network, solving, sequence), *_finetune(project, network))
        return [*_moments(project, network, cost, solving), *later, *_evaluate(project, network, solving)]


def require_steps(project: Project, cost: MemoryPlan, solving: SolvingPlan) -> None:
    """Raise MemoryLimitError where a step of the run does not fit in its memory limit."""
    limit, network = project.config.accumulate.memory_limit_bytes, project.recorded
    if limit is not None:
        for step in step_memory(project, network, cost, solving, sequence_cost(project, network)):
            step.require(limit)


def require_step(project: Project, verb: str) -> None:
    """Raise MemoryLimitError where a step that starts from what the store has does not fit in the run's limit."""
    limit = project.config.accumulate.memory_limit_bytes
    if limit is not None and verb in FROM_STORE and not project.config.sweeps:
        for step in _of_verb(project, verb, solving_from(project, StoreView.open(project.store))):
            step.require(limit)


def _of_verb(project: Project, verb: str, solving: SolvingPlan) -> list[StepMemory]:
    by_blocks = {"compress": compresses_by_blocks, "evaluate": scores_by_blocks}.get(verb)
    network = project.recorded if by_blocks is not None and by_blocks(project) else project.network
    with project.code.importing():
        if verb == "compress":
            return list(_compress(project, network, solving, sequence_cost(project, network)))
        if verb == "finetune":
            return list(_finetune(project, network))
        return list(_evaluate(project, network, solving))


def _moments(project: Project, network: nn.Module, cost: MemoryPlan, solving: SolvingPlan) -> Iterator[StepMemory]:
    config = project.config
    block = largest_piece_bytes(network) if _read_by_blocks(project) else 0
    if config.selects or config.narrows:
        few = few_samples(project.code.first_batch, EXAMPLES)
        words, factors = f"{EXAMPLES} samples there and back", "solve by factor pairs alone (solve.methods)"
        if block:
            made, copied, words = memory_within(network, few, Pieces.of(network).names), block, f"a block, {words}"
        else:
            made, copied = forward_memory(network, few).total_bytes, weights_bytes(network)
        words = f"{words}, with gradients; a copy of the {'block' if block else 'network'}"
        yield StepMemory("structure proof", block + made + max(made, copied), words, (factors,))
    passes = "a forward pass and one back" if config.network.gradients else "a forward pass"
    smaller = "smaller batches (in the options of [domains])"
    if config.capture.keep_activations:
        words = f"{passes}, its rows, and a tile of each layer"
        direct = "fold rows as they come (capture.keep_activations = false)"
        yield StepMemory("capture", cost.capture_bytes, words, (smaller, direct))
    words = ("a block, " if block else "") + "sums and tiles" + (f", {passes}" if cost.direct else "")
    yield StepMemory("accumulate", block + cost.peak_bytes, words)
    if config.accumulate.cross is not None:
        peak = weights_bytes(network) + cross.planned(project, network).peak_bytes
        words = "the second network, sums of both side by side, a batch and a forward pass"
        yield StepMemory(cross.NAME, peak, words, (smaller, "leave accumulate.cross out"))
    yield StepMemory("solve", solving.peak_bytes, f"the largest of {len(solving.costs):,} solutions and its curves")


def _compress(
    project: Project, network: nn.Module, solving: SolvingPlan, sequence: SequenceCost | BlockSequenceCost | None
) -> Iterator[StepMemory]:
    weights, layers = weights_bytes(network), [layer for layer, _ in solving.layers]
    fewer = "compress fewer layers (network.layers)"
    if project.config.compress.wanted and compresses_by_blocks(project):
        one = max((solution_bytes(layer) + replacement_bytes(layer) for layer in layers), default=0)
        words = "a block, its layers' replacements, solutions as far as they are kept, one more"
        held = largest_piece_bytes(network) + _kept_solutions(project, layers) + one + SMALL_THINGS
        smaller: tuple[str, ...] = ()
        if project.config.compress.within_budget:
            deciding, smaller = _deciding(project, network, _of_largest_piece(network, layers))
            held, words = held + deciding, f"{words}, what is measured"
        yield StepMemory("compress", held, words, (fewer, *smaller))
        if sequence is not None:
            words = "a block and its compressed copy, a pass of both, what is kept between its passes"
            yield StepMemory("compress in turn", sequence.peak_bytes, words, (fewer,))
    elif project.config.compress.wanted:
        kept = _kept_solutions(project, layers)
        held, smaller = _deciding(project, network, layers)
        words = "a copy of the network, its layers' replacements, solutions as far as they are kept, one more"
        words += ", what is measured" if smaller else ""
        yield StepMemory("compress", weights + kept + held, words, (fewer, *smaller))
        if sequence is not None:
            words = "three copies of the network, a pass of both networks, what is kept between passes"
            at_once = "compress all layers at once (compress.order = 'parallel')"
            tried = kept if project.config.compress.within_budget else 0  # while the best are built in turn
            yield StepMemory("compress in turn", weights + tried + sequence.peak_bytes, words, (at_once, fewer))


def _read_by_blocks(project: Project) -> bool:
    """Tell whether the network's blocks are read in turn: what is there of it counts as memory of each step."""
    return bool(project.config.network.blocks) and weights_elsewhere(project.recorded) is not None


def _of_largest_piece(network: nn.Module, layers: Sequence[SolvedLayer]) -> list[SolvedLayer]:
    """Return the layers of the piece in the place of which candidates have most."""
    pieces, found = Pieces.of(network), dict[str | None, list[SolvedLayer]]()
    for layer in layers:
        found.setdefault(pieces.holding(module_name(layer.name)), []).append(layer)
    return max(found.values(), key=lambda within: sum(map(replacement_bytes, within)), default=[])


def _kept_solutions(project: Project, layers: Sequence[SolvedLayer]) -> int:
    if project.config.compress.rule is None:
        return 0
    solutions = sum(map(solution_bytes, layers)) + sum(map(selection_bytes, layers)) * project.config.selects
    return min(project.room_for_solutions, solutions)


def _deciding(project: Project, network: nn.Module, layers: Sequence[SolvedLayer]) -> tuple[int, tuple[str, ...]]:
    """Return what else deciding the sizes holds, and what would take less."""
    section, validation = project.config.compress, project.config.validation
    one = max(map(curves_bytes, layers), default=0)
    held, smaller = SMALL_THINGS + one + sum(map(replacement_bytes, layers)), list[str]()
    if section.within_budget:
        held += measuring_bytes(network, project.code.batches(Unseen.deciding(project.config).domain), section.samples)
        smaller.append("fewer samples (compress.samples), or smaller batches")
    if section.rule is not None and validation is not None:
        searches = section.max_drop is not None and not compresses_by_blocks(project)
        held += _scoring(project, network, "validation", validation, keeps=searches)
        smaller.append("smaller batches (validation.options)")
    return held, tuple(smaller)


def _finetune(project: Project, network: nn.Module) -> Iterator[StepMemory]:
    section, weights = project.config.finetune, weights_bytes(network)
    if section is not None:
        passed, original = _forward(project, network, "finetune", section), section.without_labels
        words = "a copy of the network, gradients, Adam's means, a forward pass as it is kept"
        words += ", and one of the original" if original else ""
        most = (1 + ADAM) * weights + passed.total_bytes + (passed.peak_bytes if original else 0)
        yield StepMemory("finetune", most, words, ("smaller batches (finetune.options)", "leave [finetune] out"))


def _evaluate(project: Project, network: nn.Module, solving: SolvingPlan) -> Iterator[StepMemory]:
    section, layers = project.config.evaluate, [layer for layer, _ in solving.layers]
    if section is not None:
        smaller, deciding = "smaller batches (evaluate.options)", 0
        if scores_by_blocks(project):
            most = largest_piece_bytes(network) + _scoring(project, network, "evaluate", section, keeps=False)
            yield StepMemory("evaluate", most + SMALL_THINGS, "a block, a forward pass", (smaller,))
        else:
            one = max((solution_bytes(layer) + replacement_bytes(layer) for layer in layers), default=0)
            if section.compare:
                deciding = _kept_solutions(project, layers) + _deciding(project, network, layers)[0]
            most = weights_bytes(network) + _scoring(project, network, "evaluate", section, keeps=True)
            most += max(one + SMALL_THINGS, deciding)
            words = "a copy of the network, a forward pass, the cache, one solution and what is cut of it"
            yield StepMemory("evaluate", most, words, (smaller, "a smaller evaluate.cache"))
        words = "one solution, its curves and spectra, the figures of a layer"
        yield StepMemory("report", FIGURES_BYTES + max(map(report_bytes, layers), default=0), words)


def _scoring(project: Project, network: nn.Module, key: str, section: LabelledSection, *, keeps: bool) -> int:
    """Return what a forward pass holds, and what is kept of what comes before a layer where that is asked for.

    A metric of one's own takes the batches as it will, so the target's are looked at, and the cache counts whole.
    """
    cache = project.cache_of(section) if keeps else 0
    if section.metric != ACCURACY:
        return cache + forward_memory(network, project.code.first_batch).peak_bytes
    passed, loader = _forward(project, network, key, section), project.code.loader(key, section)
    length = length_of(loader)
    if length is not None:
        cache = min(cache, length * passed.total_bytes)
    return cache + passed.peak_bytes


def _forward(project: Project, network: nn.Module, key: str, section: DataSection) -> ForwardMemory:
    batch = next(iter(project.code.loader(key, section)))
    if isinstance(batch, Mapping) and LABELS in batch:
        batch, _ = labelled(batch)
    with refusals_explained(batch, f"{key}, batch 0"):
        return forward_memory(network, batch)
