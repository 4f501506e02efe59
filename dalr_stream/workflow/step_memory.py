"""What every step of a run holds at its peak, beside the process and the network: for `estimate` and dry runs.

Folding and solving are arithmetic, and held against measurements. Where the network runs, what a forward pass holds is
looked at on one batch; gradients, optimisers and copies of the network are counted from its weights. `--memory` bounds
folding and solving; the others take what the network and the loaders' batches make them take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from dalr_stream.network.capture.batches import few_samples, refusals_explained
from dalr_stream.network.measure.memory import ForwardMemory, forward_memory, weights_bytes
from dalr_stream.network.structure.graph import EXAMPLES
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.solving_cost import curves_bytes, solution_bytes
from dalr_stream.streaming.solving_plan import SolvingPlan
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.sections import DataSection
from dalr_stream.workflow.steps.sequential import sequence_cost

ACCURACY = "accuracy"
ADAM = 3
"""Beside the weights that are trained: gradients, and the two means of Adam."""

FIGURES = 64 * 2**20
"""matplotlib, and one figure."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """One step, or what a step does of its own."""

    step: str
    peak_bytes: int
    what: str
    """What it is made of, in words."""


def step_memory(project: Project, network: nn.Module, cost: MemoryPlan, solving: SolvingPlan) -> list[StepMemory]:
    """Return the peak of each step that the run file asks for, in order; any weights will do."""
    with project.code.importing():
        return list(_steps(project, network, cost, solving))


def _steps(project: Project, network: nn.Module, cost: MemoryPlan, solving: SolvingPlan) -> Iterator[StepMemory]:
    config, weights, layers = project.config, weights_bytes(network), [layer for layer, _ in solving.layers]
    if config.selects:
        few = forward_memory(network, few_samples(project.code.first_batch, EXAMPLES))
        yield StepMemory("structure proof", 2 * few.total_bytes, f"{EXAMPLES} samples there and back, with gradients")
    passes = "a forward pass and one back" if config.network.gradients else "a forward pass"
    if config.capture.keep_activations:
        yield StepMemory("capture", cost.capture_bytes, f"{passes}, its rows, and a tile of each layer")
    yield StepMemory("accumulate", cost.peak_bytes, "sums and tiles" + (f", {passes}" if cost.direct else ""))
    yield StepMemory("solve", solving.peak_bytes, f"the largest of {len(solving.costs):,} solutions and its curves")
    if config.compress.wanted:
        held = sum(map(solution_bytes, layers)) + max(map(curves_bytes, layers), default=0)
        yield StepMemory("compress", weights + held, "a copy of the network, a solution of each layer")
    sequence = sequence_cost(project, network)
    if sequence is not None and sequence.layers:
        most = max(layer.direct_bytes for layer in sequence.layers) + sequence.shared_bytes
        most += weights + 2 * cost.forward_bytes
        yield StepMemory("compress in turn", most, "a copy of the network, two forward passes, a layer's cross sums")
    if config.finetune is not None:
        passed = _forward(project, network, "finetune", config.finetune)
        original = config.finetune.without_labels  # which is run beside the copy
        words = "a copy of the network, gradients, Adam's means, a forward pass as it is kept"
        most = (1 + ADAM) * weights + passed.total_bytes + (passed.peak_bytes if original else 0)
        yield StepMemory("finetune", most, words + (", and one of the original" if original else ""))
    if config.evaluate is not None:
        peak = cost.forward_bytes  # a metric of one's own may take batches of any kind
        if config.evaluate.metric == ACCURACY:
            peak = _forward(project, network, "evaluate", config.evaluate).peak_bytes
        most = weights + peak + config.evaluate.cache_bytes + max(map(solution_bytes, layers), default=0)
        yield StepMemory("evaluate", most, "a copy of the network, a forward pass, the cache, one solution")
        most = FIGURES + max(map(curves_bytes, layers), default=0)
        yield StepMemory("report", most, "one solution and its curves, the library that draws")


def _forward(project: Project, network: nn.Module, key: str, section: DataSection) -> ForwardMemory:
    batch = next(iter(project.code.loader(key, section)))
    with refusals_explained(batch, f"{key}, batch 0"):
        return forward_memory(network, batch)
