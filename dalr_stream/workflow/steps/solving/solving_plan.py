"""What solving will hold, by a run file: from what the loaders give, or from what the store has by now."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.numerics.rows.streams import Side, stream_name
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.solving_cost import SolvedLayer
from dalr_stream.streaming.solving_plan import SolvingPlan
from dalr_stream.workflow.runfile.project import Project

Rows = Callable[[str], tuple[int, bool]]
"""Gives the training rows of a stream on the target, and whether they are kept."""


def planned_solving(project: Project, network: nn.Module, cost: MemoryPlan) -> SolvingPlan:
    """Return what solving will hold once rows are recorded as `cost` has it; any weights will do."""
    config = project.config
    target, share = config.solve.target, config.holdout(config.solve.target).share
    known, kept = cost.rows.get(target, {}), config.capture.keep_activations
    store = project.prospect(network)
    return _plan(project, store, lambda part: (-int(-known.get(part, 0) * (1 - share)), kept))


def solving_from(project: Project, store: StoreView) -> SolvingPlan:
    """Return what solving holds from what the store has."""
    target = project.config.solve.target

    def rows(part: str) -> tuple[int, bool]:
        return store.training_rows(target, part), store.rows(target, part) is not None

    return _plan(project, store, rows)


def _plan(project: Project, store: StoreView, rows: Rows) -> SolvingPlan:
    layers = (
        (_solved(project, store, layer, rows), project.methods(store, layer)) for layer in project.layers_in(store)
    )
    return SolvingPlan.of(layers, project.config.accumulate.memory_limit_bytes)


def _solved(project: Project, store: StoreView, layer: str, rows: Rows) -> SolvedLayer:
    config, parts, record = project.config, store.parts(layer), store.record(layer)
    count, kept = rows(parts[0])
    channels = record.outputs * len(parts)
    readers = {reader.span.layer: reader.stream for reader in store.readers(layer)}
    widths = store.manifest.network.layers
    return SolvedLayer(
        layer,
        record.outputs,
        record.inputs,
        count,
        kept,
        len(parts),
        config.shards(config.solve.target),
        chooses_ridge=config.solve.chooses_ridge,
        readers=tuple(
            channels if stream == stream_name(name, Side.CHANNELS) or stream not in widths else widths[stream].inputs
            for name, stream in readers.items()
        ),
    )
