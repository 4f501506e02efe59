"""The verbs that do the steps of a run file, all of them or one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from dalr_stream.cli.console import QUIET, console_for
from dalr_stream.cli.options import (
    AnyBlas,
    AsJson,
    ByMethod,
    DryRun,
    Energy,
    Evaluate,
    Fresh,
    Macs,
    MaxDrop,
    Memory,
    MultipleOf,
    Network,
    Overrides,
    Params,
    Ratio,
    RunFile,
    Scheduler,
    SingularValues,
    Workers,
    open_run,
    run_on_ranks,
    with_machine,
)

if TYPE_CHECKING:
    from dalr_stream.report.size_curve import SizeCurve
    from dalr_stream.workflow.run import Run


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

    settings = with_machine(overrides, memory, workers, scheduler, any_blas=any_blas)
    if dry_run:
        _dry_run(open_run(file, settings, fresh=fresh))
        return
    with run_on_ranks(file, settings, fresh=fresh) as opened:
        page, console = opened.all(), console_for()
        print_headline(opened.results, console)
        console.print(f"report: {page.as_uri()}", soft_wrap=True, highlight=False)


def capture(file: RunFile, overrides: Overrides = None, fresh: Fresh = False) -> None:
    """Stream activations into the store; resume if interrupted."""
    with run_on_ranks(file, overrides, fresh=fresh) as opened:
        opened.capture()


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
    settings = with_machine(overrides, memory, workers, scheduler, any_blas=any_blas)
    with run_on_ranks(file, settings, fresh=fresh) as opened:
        opened.accumulate()


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


def compress(  # noqa: PLR0913, PLR0917  # every parameter is an option of its own
    file: RunFile,
    overrides: Overrides = None,
    params: Params = None,
    macs: Macs = None,
    network: Network = None,
    energy: Energy = None,
    singular_values: SingularValues = None,
    ratio: Ratio = None,
    max_drop: MaxDrop = None,
    method: ByMethod = None,
    multiple_of: MultipleOf = None,
    evaluate: Evaluate = False,
    as_json: AsJson = False,
) -> None:
    """Save the network compressed, by [compress] or one rule.

    Several shares, such as 20%,30%,50%, compress to each and show quality against size: a table, a picture, CSV and
    JSON, in the folder sizes of the run's output. A rule on the command line applies to this command only: write it
    under [compress] to keep it.
    """
    rules = {"params": params, "macs": macs, "network": network, "energy": energy}
    rules |= {"singular_values": singular_values, "ratio": ratio, "max_drop": max_drop}
    lists = {rule: value.split(",") for rule, value in rules.items() if value is not None and "," in value}
    given: dict[str, Any] = {**rules, **{rule: shares[0] for rule, shares in lists.items()}}
    given |= {"method": method, "multiple_of": multiple_of}
    sizes = {key: value for key, value in given.items() if value is not None}
    opened = open_run(file, overrides, sizes=sizes)
    if lists or evaluate or as_json:
        rule, shares = next(iter(lists.items()), ("params", []))
        _show_sizes(opened.size_curve(shares, rule=rule, evaluate=evaluate), opened, as_json=as_json)
    else:
        opened.compress()
    if sizes and not lists and not QUIET.get():
        lines = ", ".join(f"{key} = {json.dumps(value)}" for key, value in sizes.items())
        typer.echo(
            "compress: these sizes apply to this command only; the next run, evaluate or report uses [compress] again: "
            f"write {lines} there to keep them",
            err=True,
        )


def finetune(file: RunFile, overrides: Overrides = None) -> None:
    """Fine-tune the compressed network, as [finetune] says."""
    open_run(file, overrides).finetune()


def evaluate(file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Score every method and size on the test split."""
    from dataclasses import asdict

    from dalr_stream.report.terminal import print_headline

    opened = open_run(file, overrides)
    scores = opened.evaluate()
    if as_json:
        typer.echo(json.dumps(asdict(scores), indent=1))
    else:
        print_headline(opened.results, console_for())


def report(file: RunFile, overrides: Overrides = None) -> None:
    """Write the report: HTML, PNG, CSV and JSON."""
    typer.echo(open_run(file, overrides).report().as_uri())


def _show_sizes(curve: SizeCurve, opened: Run, *, as_json: bool) -> None:
    from dataclasses import asdict

    from dalr_stream.report.size_curve import PICTURE
    from dalr_stream.report.terminal import print_table
    from dalr_stream.workflow.size_curve import FOLDER

    if as_json:
        typer.echo(json.dumps(asdict(curve), indent=1))
        return
    folder, console = opened.project.output / FOLDER, console_for()
    table = curve.table()
    print_table(table, console)
    for line in (table.footnote, f"picture: {(folder / PICTURE).as_uri()}", f"networks, CSV and JSON: {folder}"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


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
