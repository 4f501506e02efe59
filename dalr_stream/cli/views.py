"""The verbs that change nothing of a run: its layers and cost beforehand, what was found afterwards."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dalr_stream.cli.console import console_for
from dalr_stream.cli.options import (
    AsJson,
    ByMethod,
    Memory,
    Overrides,
    RunFile,
    open_run,
    with_machine,
)


def layers(file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the layers that the patterns match."""
    from dalr_stream.network.layers.spec import unsupported_layers
    from dalr_stream.workflow.results.tables import layer_facts, layer_table

    project = open_run(file, overrides).project
    network, console = project.recorded_stand_in(), console_for()
    if as_json:
        typer.echo(json.dumps(layer_facts(project, network), indent=1))
        return
    console.print(layer_table(project, network))
    for reason in unsupported_layers(network, project.config.network.layers):
        console.print(reason, soft_wrap=True, highlight=False, markup=False)


def estimate(
    file: RunFile,
    overrides: Overrides = None,
    memory: Memory = None,
    ranks: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that capture and accumulate.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print what a run will cost, before it starts."""
    from dalr_stream.workflow.run_cost import cost_of

    project, console = open_run(file, with_machine(overrides, memory)).project, console_for()
    cost = cost_of(project, project.recorded_stand_in(), ranks=ranks)
    if as_json:
        typer.echo(json.dumps(cost.facts(), indent=1))
    else:
        for table in cost.tables:
            console.print(table)
        for line in cost.lines:
            console.print(line, highlight=False)
    for require in cost.refusals:
        require()


def inspect(file: RunFile, overrides: Overrides = None, method: ByMethod = None, as_json: AsJson = False) -> None:
    """Rank layers by what compressing them saves and costs."""
    from dataclasses import asdict

    from dalr_stream.workflow.results.inspect import layer_costs
    from dalr_stream.workflow.results.tables import layer_cost_table

    opened = open_run(file, overrides)
    opened.solve()
    costs = layer_costs(opened.project, method)
    if as_json:
        typer.echo(json.dumps([asdict(layer) for layer in costs], indent=1))
    else:
        console_for().print(layer_cost_table(costs))


def profile(
    file: RunFile,
    overrides: Overrides = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes to time.")] = "1,8,64",
    as_json: AsJson = False,
) -> None:
    """Time the saved network beside the original."""
    from dataclasses import asdict

    from dalr_stream.report.terminal import print_profile
    from dalr_stream.workflow.steps.profile import parse_batch_sizes

    measured = open_run(file, overrides).profile(parse_batch_sizes(batch_sizes))
    if as_json:
        typer.echo(json.dumps({**asdict(measured), "warnings": measured.warnings}, indent=1))
    else:
        print_profile(measured, console_for())
