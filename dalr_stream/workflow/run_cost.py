"""What a run will take, all steps of it: for `estimate`, which prints it, and for a dry run, which looks at more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import nn

from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.solving_cost import solving_cost
from dalr_stream.streaming.solving_plan import SolvingPlan
from dalr_stream.workflow.results.tables import cost_table, memory_table, solving_table
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.step_memory import StepMemory, step_memory
from dalr_stream.workflow.steps.scores.scoring import networks_to_try
from dalr_stream.workflow.steps.sequential import sequence_cost
from dalr_stream.workflow.steps.sizes.budget import networks_in_words
from dalr_stream.workflow.steps.solving_plan import planned_solving


@dataclass(frozen=True, slots=True)
class RunCost:
    """Disk, memory and the dominant work of a run."""

    plan: MemoryPlan
    """Of capturing and accumulating."""
    solving: SolvingPlan
    memory: tuple[StepMemory, ...]
    """What each step holds at its peak."""
    passes: str
    """What the moments cost that layers compressed one after the other are solved from, in words; else empty."""
    trials: str
    """How many networks will be measured, scored and fine-tuned, in words."""

    @property
    def refusals(self) -> tuple[Callable[[], None], ...]:
        """What refuses a run that would not fit in memory."""
        return self.plan.require, self.solving.require

    @property
    def tables(self) -> list[Table]:
        """Layer by layer, and step by step."""
        limit = self.solving.memory_limit_bytes
        return [cost_table(self.plan), solving_table(self.solving), memory_table(self.memory, limit)]

    def facts(self) -> dict[str, Any]:
        """Return the same as plain values, sizes in bytes."""
        solving = {
            layer.name: max(solving_cost(layer, m).peak_bytes for m in ms) for layer, ms in self.solving.layers if ms
        }
        return {
            "layers": [asdict(layer) for layer in self.plan.layers],
            "disk_bytes": self.plan.disk_bytes,
            "peak_bytes": {step.step: step.peak_bytes for step in self.memory},
            "solving_peak_bytes": solving,
            "notes": self.lines,
        }

    @property
    def lines(self) -> list[str]:
        """What tables do not say."""
        return [line for line in (self.passes, self.trials) if line]


def cost_of(project: Project, network: nn.Module) -> RunCost:
    """Return what a run of this project takes; any weights will do."""
    plan = project.estimate(network)
    solving = planned_solving(project, network, plan)
    memory = tuple(step_memory(project, network, plan, solving))
    return RunCost(plan, solving, memory, passes_in_words(sequence_cost(project, network)), trials(project, network))


def trials(project: Project, network: nn.Module) -> str:
    """Say how many networks will be measured, scored and fine-tuned, any weights will do; empty where none are."""
    config, parts, tried = project.config, [], 0
    if config.compress.within_budget:
        parts.append(f"compress: {networks_in_words(project, project.prospect(network))}")
    if config.evaluate is not None:
        tried = networks_to_try(project, network)
        parts.append(f"evaluate: {tried:,} networks, and the {1 + len(project.saved)} of the run")
    if config.finetune is not None:
        tuned = 1 + tried * bool(config.evaluate and config.evaluate.finetune)
        parts.append(f"fine-tune: {tuned:,} of these, {config.finetune.epochs} epochs each")
    return "; ".join(parts)


def passes_in_words(cost: MemoryPlan | None) -> str:
    """Say what the passes of compressing layer after layer cost; nothing where there are none."""
    if cost is None or not cost.layers:
        return ""
    most = max(layer.direct_bytes for layer in cost.layers) + cost.shared_bytes
    kept = sum(layer.moments_bytes for layer in cost.layers)
    return (
        f"layer after layer: a pass for each, folding peaks at {most / 2**20:,.0f} MiB a layer, and all passes keep "
        f"{kept / 2**20:,.0f} MiB of moments at most"
    )
