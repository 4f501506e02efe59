"""A dry run: checks everything a run needs, says what it would do, and writes nothing.

Every loader is made and its first batch loaded, the network is built and scored on one batch by a metric of the user's
own, the files that the run file names are looked for, and the cost is worked out. What is wrong is collected, so that
one dry run names every missing data set, not the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from rich.table import Table

from dalr_stream.engine.estimate import held_on_disk, require_disk
from dalr_stream.errors import ConfigError, DalrStreamError
from dalr_stream.network.capture.batches import LABELS, form_of, samples_in
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.layers.spec import unsupported_layers
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.workflow.results.tables import new_table
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.run_cost import RunCost, cost_of
from dalr_stream.workflow.runfile.finetune_section import OUTPUTS, FinetuneSection
from dalr_stream.workflow.runfile.labelled_sections import LabelledSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.sections import DataSection
from dalr_stream.workflow.steps.blocks.networks import compresses_by_blocks, scores_by_blocks
from dalr_stream.workflow.steps.blocks.score_by_blocks import score_once_by_blocks
from dalr_stream.workflow.steps.evaluate import NAME as EVALUATE
from dalr_stream.workflow.steps.scores.scoring import score_on


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """What one loader gave. A loader says by an attribute `samples` how many there are in all its batches."""

    key: str
    """Its section of the run file."""
    samples: int
    exact: bool
    """Whether the loader has `samples`; otherwise they are batches times the first of them, an upper bound."""
    batches: int
    first: str
    """Shape and type of the first batch."""


@dataclass
class DryRun:
    """What a dry run found; `problems` are in words, none where the run may start."""

    loaders: list[LoaderFacts] = field(default_factory=list)
    network: str = ""
    left_out: tuple[str, ...] = ()
    """Which layers that are asked for cannot be compressed, and why."""
    cost: RunCost | None = None
    """What it would take; None where a loader or the network is missing."""
    steps: list[tuple[str, bool]] = field(default_factory=list)
    """Each step of the run in order, and whether it would be done; what has not changed would be skipped."""
    problems: list[str] = field(default_factory=list)

    @property
    def plan(self) -> MemoryPlan | None:
        """What capturing and accumulating would take."""
        return None if self.cost is None else self.cost.plan

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep a failure that the package raises on purpose as a problem, and go on."""
        try:
            yield
        except DalrStreamError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))

    def require(self) -> None:
        """Raise ConfigError that names every problem."""
        if self.problems:
            count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
            raise ConfigError(f"dry run: {count}; nothing was written\n" + "\n".join(f"- {p}" for p in self.problems))


def dry_run(project: Project) -> DryRun:
    """Look at everything that a run of this project needs; writes nothing."""
    outlook, config, run = DryRun(), project.config, Run(project)
    labelled = {"finetune": config.finetune, "evaluate": config.evaluate, "validation": config.validation}
    sections: dict[str, DataSection | None] = {f"domains.{name}": part for name, part in config.domains.items()}
    for key, section in {**sections, **labelled}.items():
        if section is not None:
            with outlook.collecting():
                outlook.loaders.append(_first_batch(project, key, section))
    network = None
    with outlook.collecting():
        network = project.recorded_stand_in()
        outlook.network = f"{type(network).__name__}, {parameter_count(network):,} parameters"
    loaded = {facts.key for facts in outlook.loaders}
    if network is not None:
        for key in ("validation", "evaluate"):
            section = labelled[key]
            if isinstance(section, LabelledSection) and key in loaded:
                with outlook.collecting():
                    _try_metric(project, key, section)
    if network is not None and loaded >= sections.keys():
        with outlook.collecting():
            outlook.left_out = unsupported_layers(network, config.network.layers)
            outlook.cost = cost_of(project, network)
        if outlook.cost is not None:
            held = held_on_disk(project.store, config.domains)
            for refusal in outlook.cost.refusals:
                with outlook.collecting():
                    refusal()
            with outlook.collecting():
                require_disk(outlook.cost.plan, project.output, held)
    for check in run.checks:
        with outlook.collecting():
            check()
    with outlook.collecting():
        outlook.steps = list(run.outlook())
    return outlook


def _needs_labels(section: DataSection) -> str:
    """Return what would do without labels, of a section that needs them; nothing of others."""
    if isinstance(section, FinetuneSection):
        return "" if section.loss == OUTPUTS else f'set loss = "{OUTPUTS}", which needs none'
    judged = isinstance(section, LabelledSection) and section.metric == "accuracy"
    return "name a metric of your own" if judged else ""


def _first_batch(project: Project, key: str, section: DataSection) -> LoaderFacts:
    loader = project.code.loader(key, section)
    length = length_of(loader)
    if length is None:
        raise ConfigError(
            f"{key}.batches: the loader of '{section.batches}' has no length: give it, or its data set, __len__"
        )
    with project.code.importing():
        batch = next(iter(loader), None)
    if batch is None:
        raise ConfigError(f"{key}.batches: '{section.batches}' gives no batch: check the data set and its split")
    remedy = _needs_labels(section)
    with_labels = LABELS in batch if isinstance(batch, Mapping) else isinstance(batch, tuple | list) and len(batch) == 2
    if remedy and not with_labels:
        raise ConfigError(f"{key}.batches: must give (inputs, labels) pairs, or {remedy}")
    known: int | None = getattr(loader, "samples", None)
    samples = samples_in(batch) * length if known is None else known
    return LoaderFacts(key, samples, known is not None, length, _in_words(batch))


def _try_metric(project: Project, key: str, section: LabelledSection) -> None:
    """Score the network on a section's first batch by a metric of one's own; raises ConfigError where that fails."""
    if section.metric == "accuracy":
        return
    with project.code.importing():
        scoring = score_on(project, key, section)
        scoring = dataclasses.replace(scoring, batches=list(islice(scoring.batches, 1)))
        try:
            if (scores_by_blocks if key == EVALUATE else compresses_by_blocks)(project):
                score_once_by_blocks(project, scoring)
            else:
                scoring(project.stand_in())
        except DalrStreamError:
            raise
        except Exception as error:  # whatever a metric of one's own raises is a fact of the dry run
            raise ConfigError(
                f"{key}.metric: '{section.metric}' fails on the first batch of '{section.batches}' alone: "
                f"{type(error).__name__}: {error}"
            ) from error


def _in_words(batch: Any) -> str:
    """Return shape and type of the first tensor of a batch."""
    members = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple | list) else [batch]
    first = next(member for member in members if isinstance(member, torch.Tensor))
    return form_of(first)


def dry_run_tables(outlook: DryRun) -> list[Table]:
    """Return what a dry run found: the loaders, the plan, the steps."""
    loaders = new_table("data", "samples", "batches", "first batch")
    for facts in outlook.loaders:
        samples = f"{facts.samples:,}" if facts.exact else f"at most {facts.samples:,}"
        loaders.add_row(facts.key, samples, f"{facts.batches:,}", facts.first)
    steps = new_table("step", "")
    for name, done in outlook.steps:
        steps.add_row(name, "would run" if done else "up to date")
    costs = [] if outlook.cost is None else outlook.cost.tables
    return [loaders, *costs, *([steps] if outlook.steps else [])]
