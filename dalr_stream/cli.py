"""The command line: one verb, one call of `workflow`.

    dalr-stream run|layers|estimate|capture|accumulate|solve|inspect|compress|evaluate|report|verify RUN.toml
    dalr-stream merge OUT.zarr STORE.zarr...
    dalr-stream diff STORE.zarr DOMAIN_A DOMAIN_B

A verb of the first line takes a run file and `--set section.key=value`; `verify` takes a store too. A failure that the
package raises on purpose is printed as one line, without a traceback, and the exit code is 1. torch and the rest are
imported when a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dalr_stream.errors import DalrStreamError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from dalr_stream.workflow.run import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compress a neural network on a target domain, from statistics streamed once.",
)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, e.g. solve.ridge=1e-3.")
]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="What folding may hold, e.g. 8GiB: capture.memory_limit.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Fold in N worker processes: capture.workers.")
]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Fold on a dask cluster: capture.scheduler.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, and nothing else there.")]
ByMethod = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="By which method, e.g. svd: compress.method.")
]
_KEPT = "percent of the compressed layers' own, not of the whole network's"
Params = Annotated[str | None, typer.Option(metavar="SHARE", help=f"Keep so many weights, e.g. 25%: {_KEPT}.")]
Macs = Annotated[str | None, typer.Option(metavar="SHARE", help=f"Keep so many multiply-adds, e.g. 25%: {_KEPT}.")]
Energy = Annotated[str | None, typer.Option(metavar="SHARE", help="Keep so much of each layer's output energy.")]
Ratio = Annotated[str | None, typer.Option(metavar="SHARE", help="The same share of the full rank, or of the nodes.")]
MaxDrop = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Search sizes that lose at most so much score on [validation].")
]
MultipleOf = Annotated[int | None, typer.Option(metavar="N", help="Round sizes to multiples, e.g. of 8.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace a store that was made from other weights.")]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the data and the network, print the plan, write nothing.")
]


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from dalr_stream import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    file: RunFile,
    overrides: Overrides = None,
    fresh: Fresh = False,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
) -> None:
    """Do every step whose inputs have changed."""
    from dalr_stream.report.terminal import print_headline
    from dalr_stream.workflow.results import results

    console = _console()
    opened = _open(file, _with_machine(overrides, memory, workers, scheduler), fresh=fresh)
    if dry_run:
        _rehearse(opened, console)
        return
    page = opened.all()
    print_headline(results(opened.project), console)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


@app.command()
def layers(file: RunFile, overrides: Overrides = None) -> None:
    """List the layers that the patterns match."""
    from dalr_stream.workflow.listing import layer_table

    opened = _open(file, overrides)
    opened.train()
    _console().print(layer_table(opened.project))


@app.command()
def estimate(file: RunFile, overrides: Overrides = None, memory: Memory = None) -> None:
    """Print what a run will cost, before it starts."""
    from dalr_stream.workflow.listing import cost_table

    opened = _open(file, _with_machine(overrides, memory))
    opened.train()
    plan = opened.project.estimate()
    _console().print(cost_table(plan))
    plan.require()


@app.command()
def capture(file: RunFile, overrides: Overrides = None, fresh: Fresh = False) -> None:
    """Stream activations into the store; resumes by itself."""
    opened = _open(file, overrides, fresh=fresh)
    opened.train()
    opened.capture()


@app.command()
def accumulate(
    file: RunFile,
    overrides: Overrides = None,
    fresh: Fresh = False,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Turn activations into moments."""
    opened = _open(file, _with_machine(overrides, memory, workers, scheduler), fresh=fresh)
    opened.train()
    opened.accumulate()


@app.command()
def solve(file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Solve every layer, method and rank from the moments."""
    from dalr_stream.workflow.listing import solution_table
    from dalr_stream.workflow.outlook import solution_facts

    opened = _open(file, overrides, console=_console(stderr=as_json))
    opened.solve()
    if as_json:
        typer.echo(json.dumps(solution_facts(opened.project), indent=1))
    else:
        _console().print(solution_table(opened.project))


@app.command()
def inspect(file: RunFile, overrides: Overrides = None, method: ByMethod = None, as_json: AsJson = False) -> None:
    """Rank the layers by what compressing them would save and cost."""
    from dataclasses import asdict

    from dalr_stream.workflow.listing import outlook_table
    from dalr_stream.workflow.outlook import outlooks

    opened = _open(file, overrides, console=_console(stderr=as_json))
    opened.solve()
    found = outlooks(opened.project, method)
    if as_json:
        typer.echo(json.dumps([asdict(layer) for layer in found], indent=1))
    else:
        _console().print(outlook_table(found))


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
    """Save the network that [compress] describes, or all layers compressed by one rule.

    A rule on the command line stands in for what [compress] says for this once: write it there to keep it.
    """
    rules = {"params": params, "macs": macs, "energy": energy, "ratio": ratio, "max_drop": max_drop}
    given: dict[str, Any] = {**rules, "method": method, "multiple_of": multiple_of}
    sizes = {key: value for key, value in given.items() if value is not None}
    _open(file, overrides, sizes=sizes).compress()


@app.command()
def evaluate(file: RunFile, overrides: Overrides = None) -> None:
    """Score every method and size on the test split."""
    from dalr_stream.report.terminal import print_headline
    from dalr_stream.workflow.results import results

    opened = _open(file, overrides)
    opened.evaluate()
    print_headline(results(opened.project), _console())


@app.command()
def report(file: RunFile, overrides: Overrides = None) -> None:
    """Write the report: HTML, PNG, CSV and JSON."""
    typer.echo(_open(file, overrides).report())


@app.command()
def verify(file: RunFile, overrides: Overrides = None) -> None:
    """Read the whole store, the run's or the one named, compare every digest and list all damage."""
    from dalr_stream.workflow.progress import for_console
    from dalr_stream.workflow.verify import verify_store

    console = _console()
    root = file if file.is_dir() else _open(file, overrides).project.store
    found = verify_store(root, progress=for_console(console))
    for line in (*found.whole, *(f"WRONG {finding}" for finding in found.findings)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    found.require()


@app.command()
def merge(
    into: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="A new store, or a merged one.", show_default=False)],
    stores: Annotated[list[Path], typer.Argument(metavar="STORE.zarr...", help="What to add up.", show_default=False)],
    without: Annotated[list[str] | None, typer.Option(metavar="SHARD", help="Leave out a shard, by its name.")] = None,
    domain: Annotated[str | None, typer.Option(metavar="NAME", help="Merge this domain only.")] = None,
) -> None:
    """Add up the moments of stores captured independently."""
    from dalr_stream.workflow.listing import shard_table
    from dalr_stream.workflow.merge import merge as merged
    from dalr_stream.workflow.progress import for_console

    console = _console()
    console.print(
        shard_table(merged(stores, into, domain=domain, without=without or (), progress=for_console(console)))
    )


@app.command()
def diff(
    store: Annotated[Path, typer.Argument(metavar="STORE.zarr", help="Where the moments are.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DOMAIN_A", help="Its units are used.", show_default=False)],
    source: Annotated[str, typer.Argument(metavar="DOMAIN_B", help="Compared with A.", show_default=False)],
    other: Annotated[Path | None, typer.Option(metavar="STORE.zarr", help="Where DOMAIN_B is, if not there.")] = None,
    layer: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Layers, as in a run file.")] = None,
    top: Annotated[int, typer.Option(metavar="K", help="Features to list.")] = 10,
) -> None:
    """List the features that moved most between two domains."""
    from dalr_stream.workflow.diff import diff_domains, shift_table

    console = _console()
    sides = target, source if other is None else f"{source} of {other.name}"
    for name, shift in diff_domains(store, target, source, other=other, layers=layer or ["*"]):
        console.print(shift_table(name, shift, sides, top))


def _rehearse(opened: Run, console: Console) -> None:
    from dalr_stream.workflow.listing import rehearsal_tables
    from dalr_stream.workflow.rehearsal import rehearse

    found = rehearse(opened.project)
    if found.network:
        console.print(f"network: {found.network}", highlight=False)
    for table in rehearsal_tables(found):
        console.print(table)
    found.require()


def main() -> None:
    """Run the command line; the entry point of `dalr-stream`."""
    try:
        app(standalone_mode=True)
    except DalrStreamError as error:
        typer.echo(f"dalr-stream: {error}", err=True)
        sys.exit(1)


def _open(
    file: Path,
    overrides: list[str] | None,
    *,
    fresh: bool = False,
    sizes: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    from dalr_stream.workflow.config import load_config
    from dalr_stream.workflow.progress import for_console
    from dalr_stream.workflow.project import Project
    from dalr_stream.workflow.run import Run

    config = load_config(file, overrides or [], sizes)
    return Run(Project(config, file.resolve().parent), progress=for_console(console or _console()), fresh=fresh)


def _with_machine(
    overrides: list[str] | None, memory: str | None, workers: int | None = None, scheduler: str | None = None
) -> list[str]:
    """Write the options about the machine as what they are: keys of the run file."""
    options = {"memory_limit": memory, "workers": workers, "scheduler": scheduler}
    given = [f"capture.{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *given]


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


if __name__ == "__main__":
    main()
