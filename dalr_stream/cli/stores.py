"""The verbs of the command line that take stores, wherever those came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dalr_stream.cli.console import console_for, show_progress
from dalr_stream.cli.options import Overrides, open_run


def verify(
    file: Annotated[Path, typer.Argument(metavar="RUN.toml|STORE.zarr", help="A run or a store.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Read a whole store or run, compare digests, list damage."""
    from dalr_stream.engine.stores.verify import verify_store
    from dalr_stream.workflow.verify import verify_run

    progress = show_progress()
    verification = (
        verify_store(file, progress=progress)
        if file.is_dir()
        else verify_run(open_run(file, overrides).project, progress=progress)
    )
    for line in (*verification.whole, *(f"WRONG {finding}" for finding in verification.findings)):
        console_for().print(line, soft_wrap=True, highlight=False, markup=False)
    verification.require()


def merge(
    into: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="A new store, or a merged one.", show_default=False)],
    stores: Annotated[list[Path], typer.Argument(metavar="STORE.zarr...", help="What to add up.", show_default=False)],
    without: Annotated[list[str] | None, typer.Option(metavar="SHARD", help="Leave out a shard, by its name.")] = None,
    domain: Annotated[str | None, typer.Option(metavar="NAME", help="Merge this domain only.")] = None,
) -> None:
    """Add up the moments of stores captured independently."""
    from dalr_stream.engine.stores.merge import merge as merged
    from dalr_stream.workflow.results.tables import shard_table

    progress = show_progress()
    console_for().print(shard_table(merged(stores, into, domain=domain, without=without or (), progress=progress)))


def diff(
    store: Annotated[Path, typer.Argument(metavar="STORE.zarr", help="Where the moments are.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DOMAIN_A", help="Its units are used.", show_default=False)],
    source: Annotated[str, typer.Argument(metavar="DOMAIN_B", help="Compared with A.", show_default=False)],
    other: Annotated[Path | None, typer.Option(metavar="STORE.zarr", help="Where DOMAIN_B is, if not there.")] = None,
    layer: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Layers, as in a run file.")] = None,
    top: Annotated[int, typer.Option(metavar="K", help="Features to list.")] = 10,
) -> None:
    """List the features that moved most between two domains."""
    from dalr_stream.engine.stores.diff import diff_domains
    from dalr_stream.workflow.results.tables import shift_table

    console = console_for()
    sides = target, source if other is None else f"{source} of {other.name}"
    for name, shift in diff_domains(store, target, source, other=other, layers=layer or ["*"]):
        console.print(shift_table(name, shift, sides, top))
