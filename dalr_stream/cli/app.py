"""The command line: one verb, one call of the Python API.

    dalr-stream init FOLDER [--from-transformers DIR]
    dalr-stream run|layers|estimate|capture|accumulate|solve|inspect|compress|finetune|profile RUN.toml
    dalr-stream evaluate|report|verify RUN.toml
    dalr-stream merge OUT.zarr STORE.zarr...
    dalr-stream diff STORE.zarr DOMAIN_A DOMAIN_B
    dalr-stream keys [SECTION]

A verb that takes a run file takes `--set section.key=value` too; `verify` takes a run file or a store. A failure that
the package raises on purpose is printed as one line, without a traceback, and the exit code is 1. torch and the rest
are imported when a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from dalr_stream.cli import init, keys, steps, stores, views
from dalr_stream.cli.options import other_rank
from dalr_stream.cli.verbs import Verbs, with_quiet
from dalr_stream.errors import DalrStreamError

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compress a neural network on a target domain, from statistics streamed once.",
    epilog="Each verb explains itself: dalr-stream VERB --help\n",
)
for verb in (
    steps.run, steps.capture, steps.accumulate, steps.solve, steps.compress, steps.finetune, steps.evaluate,
    steps.report, views.layers, views.estimate, views.inspect, views.profile, stores.verify, stores.merge, stores.diff,
    init.init, keys.keys,
):  # fmt: skip
    app.command()(with_quiet(verb))


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from dalr_stream._version import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; the entry point of `dalr-stream`.

    OpenMP's threads are told to sleep while they wait: torch's would otherwise spin, at the cost of the threads that
    fold beside them and of whatever else the machine does. Whoever sets OMP_WAIT_POLICY keeps it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rank = other_rank()
    who = "dalr-stream" if rank is None else f"dalr-stream, rank {rank}"
    if rank is not None:
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"{who}: {message}", err=True)
    try:
        app(standalone_mode=True)
    except DalrStreamError as error:
        typer.echo(f"{who}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
