"""The options that several verbs of the command line share, and the run they open.

Each option is declared once, so it has one name, one unit and one line of help wherever it stands.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dalr_stream.cli.console import command_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dalr_stream.workflow.run import Run

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, e.g. solve.ridge=1e-3.")
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory limit for every step, e.g. 8GiB: accumulate.memory_limit."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Fold in N worker processes: accumulate.workers.")
]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Fold on a dask cluster: accumulate.scheduler.")
]
AnyBlas = Annotated[
    bool,
    typer.Option("--any-blas", help="Accept workers whose BLAS rounds otherwise, and record it: accumulate.any_blas."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
ByMethod = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="Method to compress with, e.g. svd: compress.method.")
]
_OWN = "to keep, e.g. 25%; other layers do not count"
_SHARES = "SHARE[,SHARE...]"
Params = Annotated[
    str | None, typer.Option(metavar=_SHARES, help=f"Fraction of the compressed layers' weights {_OWN}.")
]
Macs = Annotated[
    str | None, typer.Option(metavar=_SHARES, help=f"Fraction of the compressed layers' multiply-adds {_OWN}.")
]
Network = Annotated[
    str | None, typer.Option(metavar=_SHARES, help="Fraction of the whole network's parameters to keep.")
]
SingularValues = Annotated[
    str | None, typer.Option(metavar=_SHARES, help="Fraction of the sum of each layer's singular values to keep.")
]
Energy = Annotated[str | None, typer.Option(metavar=_SHARES, help="Fraction of the layers' output energy to keep.")]
Ratio = Annotated[
    str | None,
    typer.Option(metavar=_SHARES, help="Fraction of the full rank, or of the nodes, to keep in each layer."),
]
Evaluate = Annotated[bool, typer.Option("--evaluate", help="Score the network on [evaluate] too, beside the original.")]
MaxDrop = Annotated[
    str | None,
    typer.Option(metavar="SHARE", help="Search for the smallest sizes whose validation score is at most SHARE worse."),
]
MultipleOf = Annotated[int | None, typer.Option(metavar="N", help="Round sizes to multiples of N, e.g. 8.")]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Redo the work, except training; replace a store made from other weights or data."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the data and the network, print the plan, write nothing.")
]


Ranks = Annotated[int, typer.Option(min=1, metavar="N", help="Processes that capture and accumulate.")]
RatesGiven = Annotated[
    list[str] | None,
    typer.Option(
        "--rate", metavar="NAME=NUMBER", help="How fast: forward, sums (operations/s), link, bucket (bytes/s)."
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Look at no data: each domain has N samples in batches as stated."),
]
Shape = Annotated[str | None, typer.Option(metavar="N,N,...", help="Shape of a batch of numbers, e.g. 64,3,224,224.")]
Tokens = Annotated[str | None, typer.Option(metavar="N,LENGTH", help="Shape of a batch of token ids, e.g. 8,2048.")]


def open_run(
    file: Path,
    overrides: list[str] | None,
    *,
    fresh: bool = False,
    sizes: Mapping[str, Any] | None = None,
) -> Run:
    """Return the run that a file describes; progress goes to standard error, results to standard output.

    Of the ranks of a job, the first alone goes on: the others are done.
    """
    from dalr_stream.workflow.run import Run
    from dalr_stream.workflow.runfile.config import load_config
    from dalr_stream.workflow.runfile.project import Project

    if other_rank() is not None:
        raise typer.Exit
    config = load_config(file, overrides or [], sizes)
    return Run(Project(config, file.resolve().parent), progress=command_progress(), fresh=fresh)


@contextmanager
def run_on_ranks(file: Path, overrides: list[str] | None, *, fresh: bool = False) -> Iterator[Run]:
    """Open the run of a file on every rank of a job that torchrun, say, started.

    The block is rank 0's. The others take part in its steps, and leave when it is done.
    """
    from dalr_stream.engine.ranks.ranks import open_ranks
    from dalr_stream.network.torch_library import use_own_device
    from dalr_stream.workflow.following import dismiss, follow
    from dalr_stream.workflow.run import Run
    from dalr_stream.workflow.runfile.config import load_config
    from dalr_stream.workflow.runfile.project import Project

    project = Project(load_config(file, overrides or []), file.resolve().parent)
    with open_ranks() as ranks:
        if ranks.ranks > 1:
            use_own_device(os.environ)
        if ranks.first:
            yield Run(project, progress=command_progress(), fresh=fresh, ranks=ranks)
            dismiss(ranks)
            return
        follow(project, ranks)
    raise typer.Exit  # the block is not for this rank


def other_rank() -> str | None:
    """Return the number of this rank where it is not the first of a job of several, for messages."""
    rank = os.environ.get("RANK", "0")
    return None if rank == "0" or os.environ.get("WORLD_SIZE", "1") == "1" else rank


def with_machine(
    overrides: list[str] | None,
    memory: str | None,
    workers: int | None = None,
    scheduler: str | None = None,
    *,
    any_blas: bool = False,
) -> list[str]:
    """Return the overrides, and after them the options about the machine as the keys of the run file that they are."""
    options = {"memory_limit": memory, "workers": workers, "scheduler": scheduler, "any_blas": any_blas or None}
    given = [f"accumulate.{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *given]
