"""The verbs that change nothing of a run: its layers and cost beforehand, what was found afterwards."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from dalr_stream.cli.console import console_for
from dalr_stream.cli.options import (
    AsJson,
    ByMethod,
    Memory,
    Overrides,
    Ranks,
    RatesGiven,
    RunFile,
    Samples,
    Shape,
    Tokens,
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


def estimate(  # noqa: PLR0913, PLR0917  # each is an option
    file: RunFile,
    overrides: Overrides = None,
    memory: Memory = None,
    ranks: Ranks = 1,
    rates: RatesGiven = None,
    samples: Samples = None,
    shape: Shape = None,
    tokens: Tokens = None,
    as_json: AsJson = False,
) -> None:
    """Print what a run will cost, before it starts."""
    from dalr_stream.workflow.run_cost import cost_of
    from dalr_stream.workflow.without_data import StatedData, cost_without_data, parse_rates

    set_by, known = with_machine(overrides, memory), parse_rates(rates or [])
    stated = StatedData.of(samples, shape, tokens)
    if stated is None:
        project = open_run(file, set_by).project
        cost: Any = cost_of(project, project.recorded_stand_in(), ranks=ranks, rates=known)
    else:
        cost = cost_without_data(file, set_by, stated, ranks=ranks, rates=known)
    if as_json:
        typer.echo(json.dumps(cost.facts(), indent=1))
    else:
        console = console_for()
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
