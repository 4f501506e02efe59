"""Tables for the terminal: the layers, what a run will cost, what was solved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from dalr_stream.engine.capture import network_record
from dalr_stream.engine.stores.merge import Merged
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.numerics.rows.streams import Side, layer_of_stream, module_name
from dalr_stream.numerics.selection.shift import MomentShift
from dalr_stream.streaming.cost import LayerCost as FoldCost
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.solving_cost import solving_cost
from dalr_stream.streaming.solving_plan import SolvingPlan
from dalr_stream.workflow.results.inspect import ENOUGH, LayerCost, SizePoint
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.step_memory import StepMemory

L = TypeVar("L")


def layer_facts(project: Project, network: nn.Module) -> list[dict[str, Any]]:
    """Return the layers of a network, trained or not, as plain values.

    What is watched for the selections of other layers has its name and kind alone.
    """
    watched = project.watched_in(network)
    records = network_record(network, watched).layers
    facts: list[dict[str, Any]] = []
    for name, layers in _by_module(watched, lambda layer: layer.stream).items():
        layer, groups = layers[0], len(layers)
        if layer.side in (Side.CHANNELS, Side.GRADIENTS):
            why = "selections" if layer.side is Side.CHANNELS else "weighted methods"
            facts.append({"layer": name, "kind": layer.kind, "watched_for": why})
            continue
        record = records[layer.stream]
        facts.append({
            "layer": name,
            "kind": layer.kind,
            "groups": groups,
            "outputs": groups * layer.outputs,
            "inputs": layer.inputs,
            "weights": groups * layer.parameters,
            "break_even_rank": layer.break_even_rank,
            "read_by": [reader.span.layer for reader in record.readers],
            "no_selection": record.unprunable and record.unprunable.partition(": ")[2],
        })  # fmt: skip
        if record.heads is not None:
            facts[-1] |= {"heads": record.heads.heads, "head_size": record.heads.size}
    return facts


def layer_table(project: Project, network: nn.Module) -> Table:
    """Return the same as a table."""
    table = new_table("layer", "kind", "outputs x inputs", "weights", "break-even rank", "read by")
    for fact in layer_facts(project, network):
        if "watched_for" in fact:
            table.add_row(fact["layer"], fact["kind"], "", "", "", f"watched for {fact['watched_for']}")
            continue
        readers = ", ".join(fact["read_by"]) or (fact["no_selection"] and f"no selection: {fact['no_selection']}")
        if "heads" in fact:
            readers = f"{fact['heads']} heads of {fact['head_size']}; {readers}"
        table.add_row(
            _with_groups(fact["layer"], fact["groups"]),
            fact["kind"],
            f"{fact['outputs']:,} x {fact['inputs']:,}",
            f"{fact['weights']:,}",
            f"{fact['break_even_rank']:,}",
            readers,
        )
    return table


def cost_table(plan: MemoryPlan) -> Table:
    """Return the plan, a row a layer and the totals; the dominant cost is the layer's share of all multiply-adds.

    Features and rows of a convolution of several groups are those of each of them.
    """
    table = new_table("layer", "features", "rows", "disk", "moments", "memory", "passes", "mult-adds", "share")
    checkpoints = f"checkpoints take up to {_mib(plan.checkpoint_bytes)} of disk more, until the moments are there"
    if plan.stream_bytes:
        checkpoints += f", what blocks give each other {_mib(plan.stream_bytes)}"
    if plan.moments_at_once_bytes is not None:
        checkpoints += f"; at most {_mib(plan.moments_at_once_bytes)} of the moments are there at once"
    table.title = Text(f"disk, moments and peak memory in MiB; {checkpoints}", justify="left")
    passes = {name: number for number, group in enumerate(plan.groups, start=1) for name in group}
    for name, layers in _by_module(plan.layers, lambda layer: layer.name).items():
        taken = sorted({passes[layer.name] for layer in layers})
        multiply_adds = sum(layer.multiply_adds for layer in layers)
        table.add_row(
            _with_groups(name, len(layers)),
            f"{layers[0].features:,}",
            f"{layers[0].rows:,}",
            "none kept" if plan.direct else _mib(sum(layer.disk_bytes for layer in layers)),
            _mib(sum(layer.moments_bytes for layer in layers)),
            _mib(sum(_held(plan, layer) for layer in layers) if plan.direct else layers[0].store_bytes),
            _passes(plan, taken, layers[0]),
            f"{multiply_adds:.2e}",
            f"{multiply_adds / max(plan.multiply_adds, 1):.0%}",
        )
    table.add_section()
    moments = sum(layer.moments_bytes for layer in plan.layers)
    rows = sum(layer.rows for layer in plan.layers)
    disk = _mib(plan.activations_bytes)
    adds = f"{plan.multiply_adds:.2e}"
    table.add_row("total", "", f"{rows:,}", disk, _mib(moments), _mib(plan.peak_bytes), "", adds, "")
    return table


def _held(plan: MemoryPlan, layer: FoldCost) -> int:
    """Return what a rank holds of a layer's sums: all, or the strips of the one that holds most."""
    shared = plan.in_strips(layer.name)
    return layer.direct_bytes if shared is None else shared.sums_bytes[layer.name]


def _passes(plan: MemoryPlan, taken: Sequence[int], layer: FoldCost) -> str:
    if not plan.direct:
        return f"{layer.passes}"
    strips = "" if plan.in_strips(layer.name) is None else ", in strips"
    return f"no. {', '.join(map(str, taken))} of {len(plan.groups)}{strips}"


def solving_table(plan: SolvingPlan) -> Table:
    """Return what solving each layer will hold: the method that takes most, its route, and the range over all."""
    table = new_table("layer", "outputs x inputs", "rows", "methods", "solving at most", "by", "route", "at least")
    table.title = Text("peak memory of solving, in MiB; one solution is made at a time", justify="left")
    for layer, methods in plan.layers:
        costs = sorted((solving_cost(layer, method) for method in methods), key=lambda cost: cost.peak_bytes)
        if costs:
            most, shape = costs[-1], f"{layer.groups * layer.outputs:,} x {layer.inputs:,}"
            where = (_mib(most.peak_bytes), most.method.value, most.route.value, _mib(costs[0].peak_bytes))
            table.add_row(_with_groups(layer.name, layer.groups), shape, f"{layer.rows:,}", f"{len(costs)}", *where)
    return table


def memory_table(steps: Sequence[StepMemory], limit: int | None) -> Table:
    """Return what each step holds at its peak; those above a limit are marked."""
    table = new_table("step", "memory", "")
    table.title = Text(
        "peak memory in MiB, beside the process, a network that is in memory, and a batch", justify="left"
    )
    table.columns[2].justify = "left"
    for step in steps:
        over = ", over the limit" if limit is not None and step.peak_bytes > limit else ""
        table.add_row(step.step, _mib(step.peak_bytes), step.what + over)
    return table


def solution_table(project: Project) -> Table:
    """Return what was solved: numerical rank, ridge and route of each solution."""
    table = new_table("layer", "method", "rows", "numerical rank", "ridge", "route")
    store = StoreView.open(project.store)
    for layer in project.layers:
        for method, solution in store.solutions(layer, project.methods(store, layer)).items():
            facts = solution.diagnostics
            rank = "" if facts.numerical_rank is None else f"{facts.numerical_rank:,}"
            table.add_row(layer, method.label, f"{facts.count:,}", rank, f"{facts.ridge:.3g}", facts.route)
    return table


def layer_cost_table(costs: Sequence[LayerCost]) -> Table:
    """Return what compressing each layer would save and cost, best first.

    Sizes are for enough energy, for half the weights and at break-even; errors on the training / the held-out rows.
    Narrow enough for a terminal of 80 columns: `inspect --json` has the rest.
    """
    table = new_table("layer", "shape", f"{ENOUGH:.0%} at", "saves", "half", "error", "break-even", "error")
    table.title = Text(", ".join(dict.fromkeys(cost.method.label for cost in costs)), justify="left")
    for cost in costs:
        table.add_row(
            Text(_with_groups(cost.layer, cost.groups)),
            f"{cost.outputs:,} x {cost.inputs:,}",
            f"{cost.enough.size:,}" if cost.enough.saved else "all",
            f"{cost.enough.saved / cost.weights:.0%}",
            *_point_cells(cost.half),
            *_point_cells(cost.break_even),
        )
    return table


def shard_facts(merged: Merged) -> list[dict[str, Any]]:
    """Return what a merged store is the sum of, as plain values; names are as `--without` takes them."""
    return [
        {"domain": one.domain, "shard": one.name, "samples": one.record.samples, "from": str(one.root)}
        for one in merged.shards
    ]


def shard_table(merged: Merged) -> Table:
    """Return the same as a table."""
    table = new_table("domain", "shard", "samples", "from")
    for fact in shard_facts(merged):
        table.add_row(Text(fact["domain"]), fact["shard"], f"{fact['samples']:,}", Text(fact["from"]))
    return table


def shift_facts(shift: MomentShift, top: int = 10) -> list[dict[str, float | None]]:
    """Return the `top` features whose means moved most, as plain values; a gap that is not finite is None."""
    columns = {
        "target_mean": shift.target_mean,
        "source_mean": shift.source_mean,
        "gap": shift.mean_gap,
        "covariance_shift": shift.covariance_shift,
    }
    return [
        {"feature": int(j), **{name: _finite(values[j]) for name, values in columns.items()}} for j in shift.top(top)
    ]


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def shift_table(layer: str, shift: MomentShift, sides: tuple[str, str], top: int = 10) -> Group:
    """Return the `top` features of a layer whose means moved most; `sides` are the names of target and source."""
    still = int((shift.mean_gap == 0.0).sum())
    not_live = shift.features - int(shift.live.sum())
    title = f"{layer}: {shift.features:,} features, {still:,} with equal means, {not_live:,} not live on {sides[0]}"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("feature", f"mean on {sides[0]}", f"mean on {sides[1]}", "gap (std)", "covariance shift"):
        table.add_column(Text(column), justify="right")
    for j in shift.top(top):
        figures = shift.target_mean[j], shift.source_mean[j], shift.mean_gap[j], shift.covariance_shift[j]
        table.add_row(f"{j}", *(f"{figure:.4g}" for figure in figures))
    return Group(Text(title), table)


def _by_module(layers: Iterable[L], name_of: Callable[[L], str]) -> dict[str, list[L]]:
    """Put the groups of a convolution together, under its name and what of it is watched."""
    modules: dict[str, list[L]] = {}
    for layer in layers:
        stream = name_of(layer)
        watched = layer_of_stream(stream)
        modules.setdefault(module_name(watched) + stream.removeprefix(watched), []).append(layer)
    return modules


def _with_groups(name: str, groups: int) -> str:
    return f"{name} ({groups} groups)" if groups > 1 else name


_WORDS = {"", "by", "first batch", "from", "kind", "method", "read by", "route", "shard"}
"""Columns of words; others hold numbers."""


def new_table(*columns: str) -> Table:
    """Return an empty table with these columns, the first of them for names, which are folded and never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column in _WORDS else "right", overflow="fold")
    return table


def _point_cells(point: SizePoint | None) -> tuple[str, str]:
    if point is None:
        return "none", ""
    heldout = "" if point.error_heldout is None else f" / {point.error_heldout:.3f}"
    return f"{point.size:,}", f"{point.error_training:.3f}{heldout}"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f}"
