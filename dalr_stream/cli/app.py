"""The command line: one verb, one call of the Python API.

    dalr-stream run|layers|estimate|capture|accumulate|solve|inspect|compress|finetune|profile RUN.toml
    dalr-stream evaluate|report|verify RUN.toml
    dalr-stream merge OUT.zarr STORE.zarr...
    dalr-stream diff STORE.zarr DOMAIN_A DOMAIN_B
    dalr-stream init FOLDER [--from-transformers DIR]
    dalr-stream keys [SECTION]

A verb of the first two lines takes a run file and `--set section.key=value`; `verify` takes a store too. A failure that
the package raises on purpose is printed as one line, without a traceback, and the exit code is 1. torch and the rest
are imported when a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dalr_stream.cli import init as cli_init
from dalr_stream.cli import keys as cli_keys
from dalr_stream.cli import stores as cli_stores
from dalr_stream.cli.console import console_for
from dalr_stream.cli.options import (
    AnyBlas,
    AsJson,
    ByMethod,
    DryRun,
    Energy,
    Fresh,
    Macs,
    MaxDrop,
    Memory,
    MultipleOf,
    Overrides,
    Params,
    Ratio,
    RunFile,
    Scheduler,
    Workers,
    open_run,
    with_machine,
)
from dalr_stream.errors import DalrStreamError

if TYPE_CHECKING:
    from dalr_stream.workflow.run import Run


class _Verbs(TyperGroup):
    """The verbs; every one of them may be interrupted, and resumes when it is run again."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Interrupted. Run the same command again to resume.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compress a neural network on a target domain, from statistics streamed once.",
)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from dalr_stream._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(  # noqa: PLR0913, PLR0917  # every parameter is an option of its own
    file: RunFile,
    overrides: Overrides = None,
    fresh: Fresh = False,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    any_blas: AnyBlas = False,
    dry_run: DryRun = False,
) -> None:
    """Do every step whose inputs have changed."""
    from dalr_stream.report.terminal import print_headline

    opened = open_run(file, with_machine(overrides, memory, workers, scheduler, any_blas=any_blas), fresh=fresh)
    if dry_run:
        _dry_run(opened)
        return
    page, console = opened.all(), console_for()
    print_headline(opened.results, console)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


@app.command()
def layers(file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the layers that the patterns match."""
    from dalr_stream.network.layers.spec import unsupported_layers
    from dalr_stream.workflow.results.tables import layer_facts, layer_table

    project = open_run(file, overrides).project
    network, console = project.stand_in(), console_for()
    if as_json:
        typer.echo(json.dumps(layer_facts(project, network), indent=1))
        return
    console.print(layer_table(project, network))
    for reason in unsupported_layers(network, project.config.network.layers):
        console.print(reason, soft_wrap=True, highlight=False, markup=False)


@app.command()
def estimate(file: RunFile, overrides: Overrides = None, memory: Memory = None) -> None:
    """Print what a run will cost, before it starts."""
    from dalr_stream.workflow.run_cost import cost_of

    project, console = open_run(file, with_machine(overrides, memory)).project, console_for()
    cost = cost_of(project, project.stand_in())
    for table in cost.tables:
        console.print(table)
    for line in cost.lines:
        console.print(line, highlight=False)
    for require in cost.refusals:
        require()


@app.command()
def capture(file: RunFile, overrides: Overrides = None, fresh: Fresh = False) -> None:
    """Stream activations into the store; resumes by itself."""
    open_run(file, overrides, fresh=fresh).capture()


@app.command()
def accumulate(
    file: RunFile,
    overrides: Overrides = None,
    fresh: Fresh = False,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    any_blas: AnyBlas = False,
) -> None:
    """Turn activations into moments."""
    open_run(file, with_machine(overrides, memory, workers, scheduler, any_blas=any_blas), fresh=fresh).accumulate()


@app.command()
def solve(file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Solve every layer, method and rank from the moments."""
    from dalr_stream.workflow.results.inspect import solution_facts
    from dalr_stream.workflow.results.tables import solution_table

    opened = open_run(file, overrides)
    opened.solve()
    if as_json:
        typer.echo(json.dumps(solution_facts(opened.project), indent=1))
    else:
        console_for().print(solution_table(opened.project))


@app.command()
def inspect(file: RunFile, overrides: Overrides = None, method: ByMethod = None, as_json: AsJson = False) -> None:
    """Rank the layers by what compressing saves and costs."""
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


@app.command()
def compress(  # noqa: PLR0913, PLR0917  # every parameter is an option of its own
    file: RunFile,
    overrides: Overrides = None,
    params: Params = None,
    macs: Macs = None,
    energy: Energy = None,
    ratio: Ratio = None,
    max_drop: MaxDrop = None,
    method: ByMethod = None,
    multiple_of: MultipleOf = None,
) -> None:
    """Save the network compressed, by [compress] or one rule.

    A rule on the command line applies to this command only: write it under [compress] to keep it.
    """
    rules = {"params": params, "macs": macs, "energy": energy, "ratio": ratio, "max_drop": max_drop}
    given: dict[str, Any] = {**rules, "method": method, "multiple_of": multiple_of}
    sizes = {key: value for key, value in given.items() if value is not None}
    open_run(file, overrides, sizes=sizes).compress()
    if sizes:
        lines = ", ".join(f"{key} = {json.dumps(value)}" for key, value in sizes.items())
        typer.echo(
            "compress: these sizes apply to this command only; the next run, evaluate or report uses [compress] again: "
            f"write {lines} there to keep them",
            err=True,
        )


@app.command()
def profile(
    file: RunFile,
    overrides: Overrides = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,N,...", help="Samples at once.")] = "1,8,64",
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


@app.command()
def finetune(file: RunFile, overrides: Overrides = None) -> None:
    """Fine-tune the compressed network, as [finetune] says."""
    open_run(file, overrides).finetune()


@app.command()
def evaluate(file: RunFile, overrides: Overrides = None) -> None:
    """Score every method and size on the test split."""
    from dalr_stream.report.terminal import print_headline

    opened = open_run(file, overrides)
    opened.evaluate()
    print_headline(opened.results, console_for())


@app.command()
def report(file: RunFile, overrides: Overrides = None) -> None:
    """Write the report: HTML, PNG, CSV and JSON."""
    typer.echo(open_run(file, overrides).report())


app.command()(cli_stores.verify)
app.command()(cli_stores.merge)
app.command()(cli_stores.diff)
app.command()(cli_init.init)
app.command()(cli_keys.keys)


def _dry_run(opened: Run) -> None:
    from dalr_stream.workflow.dry_run import dry_run, dry_run_tables

    outlook, console = dry_run(opened.project), console_for()
    if outlook.network:
        console.print(f"network: {outlook.network}", highlight=False)
    for reason in outlook.left_out:
        console.print(reason, soft_wrap=True, highlight=False, markup=False)
    for table in dry_run_tables(outlook):
        console.print(table)
    for line in [] if outlook.cost is None else outlook.cost.lines:
        console.print(line, highlight=False)
    outlook.require()


def main() -> None:
    """Run the command line; the entry point of `dalr-stream`.

    OpenMP's threads are told to sleep while they wait: torch's would otherwise spin, at the cost of the threads that
    fold beside them and of whatever else the machine does. Whoever sets OMP_WAIT_POLICY keeps it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except DalrStreamError as error:
        typer.echo(f"dalr-stream: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
