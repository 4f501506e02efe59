"""What a run will take, all steps of it: for `estimate`, which prints it, and for a dry run, which looks at more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.table import Table
from torch import nn

from dalr_stream.engine.planning.rates import Rates
from dalr_stream.engine.sequential.blocks.estimate import BlockSequenceCost
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.solving_cost import solving_cost
from dalr_stream.streaming.solving_plan import SolvingPlan
from dalr_stream.workflow.results.tables import cost_table, memory_table, solving_table
from dalr_stream.workflow.results.time_table import time_table
from dalr_stream.workflow.run_time import RunTime, run_time
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.sequence_cost import SequenceCost, sequence_cost
from dalr_stream.workflow.step_memory import StepMemory, step_memory
from dalr_stream.workflow.steps.scores.scoring import networks_to_try
from dalr_stream.workflow.steps.sizes import by_nats
from dalr_stream.workflow.steps.sizes.budget import networks_in_words
from dalr_stream.workflow.steps.solving.solving_plan import planned_solving


@dataclass(frozen=True, slots=True)
class RunCost:
    """Disk, memory and the dominant work of a run."""

    plan: MemoryPlan
    """Of capturing and accumulating."""
    solving: SolvingPlan
    memory: tuple[StepMemory, ...]
    """What each step holds at its peak."""
    sequence: SequenceCost | BlockSequenceCost | None
    """What the passes cost, where layers are compressed one after the other."""
    trials: str
    """How many networks will be measured, scored and fine-tuned, in words."""
    time: RunTime
    """How long capturing and accumulating take, by one process and by several, and what they ask of a bucket."""

    @property
    def refusals(self) -> tuple[Callable[[], None], ...]:
        """What refuses a run that would not fit in memory."""
        limit = self.solving.memory_limit_bytes
        passes = () if self.sequence is None else (self.sequence.require,)
        steps = () if limit is None else tuple(partial(step.require, limit) for step in self.memory)
        return self.plan.require, self.solving.require, *passes, *steps

    @property
    def tables(self) -> list[Table]:
        """Layer by layer, and step by step."""
        limit = self.solving.memory_limit_bytes
        beyond = self.time.estimate.ranks > 1 or self.time.estimate.requests.puts
        times = [time_table(self.time.estimate)] if beyond else []
        return [cost_table(self.plan), *times, solving_table(self.solving), memory_table(self.memory, limit)]

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
            "time": self.time.estimate.facts(),
            "notes": self.lines,
        }

    @property
    def lines(self) -> list[str]:
        """What tables do not say."""
        passes = "" if self.sequence is None else self.sequence.in_words
        return [line for line in (passes, self.trials, *self.time.lines) if line]


def cost_of(project: Project, network: nn.Module, *, ranks: int = 1, rates: Rates | None = None) -> RunCost:
    """Return what a run of this project takes, captured and accumulated by `ranks` processes; any weights will do."""
    plan = project.estimate(network, ranks=ranks)
    solving = planned_solving(project, network, plan)
    sequence = sequence_cost(project, network)
    memory = tuple(step_memory(project, network, plan, solving, sequence))
    time = run_time(project, network, plan, ranks, rates)
    return RunCost(plan, solving, memory, sequence, trials(project, network), time)


def trials(project: Project, network: nn.Module) -> str:
    """Say how many networks will be measured, scored and fine-tuned, any weights will do; empty where none are."""
    config, parts, tried = project.config, [], 0
    if config.compress.within_budget:
        parts.append(f"compress: {networks_in_words(project, project.prospect(network))}")
    if config.compress.max_drop is not None and config.network.gradients:
        parts.append(f"compress: {by_nats.networks_in_words(project, project.prospect(network))}")
    if config.evaluate is not None:
        tried = networks_to_try(project, network)
        compared = len(config.evaluate.compare)
        others = f", and {compared:,} by methods to compare, each chosen as in compress" if compared else ""
        parts.append(f"evaluate: {tried:,} networks, and the {1 + len(project.saved)} of the run{others}")
    if config.finetune is not None:
        tuned = 1 + tried * bool(config.evaluate and config.evaluate.finetune)
        parts.append(f"fine-tune: {tuned:,} of these, {config.finetune.epochs} epochs each")
    return "; ".join(parts)
