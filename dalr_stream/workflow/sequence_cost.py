"""What compressing layer after layer will hold, by a run file, were every layer that it may concern compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dalr_stream.engine.cross.cost import PairMemory
from dalr_stream.engine.sequential.blocks.estimate import BlockSequenceCost, estimate_by_blocks
from dalr_stream.engine.sequential.onward_passes import kept_of_sample
from dalr_stream.engine.sequential.pass_plan import PassesOf, SequencePlan, plan_passes, watched_in_passes
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.passes import order_of_execution
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.patterns import match_names
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.blocks.networks import compresses_by_blocks
from dalr_stream.workflow.steps.sequential import folding_of, source_of


@dataclass(frozen=True, slots=True)
class SequenceCost:
    """All passes of a run."""

    plan: SequencePlan
    kept_bytes: int
    """What would be kept between two passes, were there room for all of it; 0 where nothing can be."""

    def require(self) -> None:
        """Raise MemoryLimitError where a pass does not fit."""
        self.plan.require()

    @property
    def peak_bytes(self) -> int:
        """The most that is held at once."""
        return self.plan.peak_bytes(self.kept_bytes)

    @property
    def in_words(self) -> str:
        """How many passes there are, and what they hold and keep."""
        plan, room = self.plan, self.plan.room_bytes
        rest = "" if self.kept_bytes <= room else f" of {_mib(self.kept_bytes)} (other batches run from their inputs)"
        return (
            f"layer after layer: {len(plan.passes)} passes at most; a pass peaks at {_mib(plan.pass_bytes)}, two "
            f"networks take {_mib(plan.networks_bytes)}, and {_mib(min(room, self.kept_bytes))}{rest} are kept between "
            f"passes; moments of all passes take {_mib(plan.moments_bytes)} of disk at most"
        )


def sequence_cost(project: Project, network: nn.Module) -> SequenceCost | BlockSequenceCost | None:
    """Return what the passes cost, None in another order; any weights will do.

    Raises UnsupportedLayerError for a layer that is not called exactly once, or for a selection that reaches beyond its
    block where blocks go one by one.
    """
    if project.config.compress.order is not Order.SEQUENTIAL:
        return None
    store = project.prospect(network)
    named = [name for pattern in project.config.compress.layers for name in match_names(pattern, store.layers)]
    methods = {name: project.methods(store, name) for name in named or project.layers_in(store)}
    if weights_elsewhere(network) is not None and compresses_by_blocks(project):
        return _by_blocks(project, network, {name: known for name, known in methods.items() if known})
    selects = any(method.family is Family.SELECTION for known in methods.values() for method in known)
    first, samples = _batches(project)
    structure = Structure.of(network, first) if selects else None
    passes = order_of_execution(network, first, list(methods))
    selected = [name for name, known in methods.items() if any(one.family is Family.SELECTION for one in known)]
    mending = list(methods) if project.config.compress.target is Target.STREAM else []
    narrowed = [name for name, known in methods.items() if any(one.family is Family.HEADS for one in known)]
    heads = {name: store.heads[name] for name in narrowed}
    names = [*methods, *(one for layout in heads.values() for one in layout.layers[:-1])]
    watched = watched_in_passes(network, names, selected, structure, [one for one in selected if one in mending])
    batch = PairMemory.of([network], first, watched, project.code.rows)
    plan = plan_passes(PassesOf(network, passes, methods, structure, mending, heads), folding_of(project), batch)
    return SequenceCost(plan, samples * kept_of_sample(network, first, passes, (), heads))


def _by_blocks(project: Project, network: nn.Module, methods: Mapping[str, Sequence[Method]]) -> BlockSequenceCost:
    """Return what a sweep costs, by one method of each layer: of those that it may be, the one that takes most."""
    chosen = {name: max(known, key=_cost) for name, known in methods.items()}
    return estimate_by_blocks(
        network,
        project.code.batches(project.config.solve.target),
        chosen,
        folding_of(project),
        blocks=project.config.network.blocks or True,
        target=project.config.compress.target,
        source=source_of(project),
        rows=project.code.rows,
    )


def _cost(method: Method) -> tuple[bool, ...]:
    """Order methods by what they take: heads four layers, a selection what reads the nodes, then another's moments."""
    family = method.family
    return family is Family.HEADS, family is Family.SELECTION, method.needs_source, method.weighted


def _batches(project: Project) -> tuple[Any, int]:
    """Return the target's first batch, and how many samples all of them have at most."""
    batches = project.code.batches(project.config.solve.target)
    first = next(iter(batches))
    return first, samples_in(first) * (length_of(batches) or 1)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
