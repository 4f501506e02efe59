"""The verbs of the command line that take stores, wherever those came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dalr_stream.cli.console import command_progress, console_for
from dalr_stream.cli.options import AsJson, Overrides, open_run


def verify(
    file: Annotated[str, typer.Argument(metavar="RUN.toml|STORE.zarr", help="A run or a store.", show_default=False)],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check every digest of a store or a run, and list damage."""
    from dalr_stream.engine.stores.verify import verify_store
    from dalr_stream.storage.places.address import is_url
    from dalr_stream.workflow.verify import verify_run

    progress = command_progress()
    verification = (
        verify_store(file, progress=progress)
        if is_url(file) or Path(file).is_dir()
        else verify_run(open_run(Path(file), overrides).project, progress=progress)
    )
    if as_json:
        findings = [str(finding) for finding in verification.findings]
        typer.echo(json.dumps({"whole": verification.whole, "wrong": findings}, indent=1))
        verification.require()
        return
    lines = (*verification.whole, *(f"WRONG {finding}" for finding in verification.findings))
    for line in lines or (f"'{file}' holds no records: there is nothing to check",):
        console_for().print(line, soft_wrap=True, highlight=False, markup=False)
    verification.require()


def merge(
    into: Annotated[str, typer.Argument(metavar="OUT.zarr", help="A new store, or a merged one.", show_default=False)],
    stores: Annotated[list[str], typer.Argument(metavar="STORE.zarr", help="Stores to add.", show_default=False)],
    without: Annotated[list[str] | None, typer.Option(metavar="SHARD", help="Leave out a shard, by its name.")] = None,
    domain: Annotated[str | None, typer.Option(metavar="NAME", help="Merge this domain only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add up the moments of stores captured independently."""
    from dalr_stream.engine.stores.merge import merge as merged
    from dalr_stream.workflow.results.tables import shard_facts, shard_table

    made = merged(stores, into, domain=domain, without=without or (), progress=command_progress())
    if as_json:
        typer.echo(json.dumps(shard_facts(made), indent=1))
    else:
        console_for().print(shard_table(made))


def diff(
    store: Annotated[str, typer.Argument(metavar="STORE.zarr", help="A store with moments.", show_default=False)],
    target: Annotated[
        str, typer.Argument(metavar="DOMAIN_A", help="The reference, in whose units gaps are.", show_default=False)
    ],
    source: Annotated[str, typer.Argument(metavar="DOMAIN_B", help="Compared with DOMAIN_A.", show_default=False)],
    other: Annotated[
        str | None, typer.Option(metavar="STORE.zarr", help="The store of DOMAIN_B, if it is another.")
    ] = None,
    layer: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Layers, as in a run file.")] = None,
    top: Annotated[int, typer.Option(metavar="K", help="Features to list.")] = 10,
    as_json: AsJson = False,
) -> None:
    """List the features that moved most between two domains."""
    from dalr_stream.engine.stores.diff import diff_domains
    from dalr_stream.storage.places.place import place_of
    from dalr_stream.workflow.results.tables import shift_facts, shift_table

    console = console_for()
    sides = target, source if other is None else f"{source} of {place_of(other).name}"
    shifts = diff_domains(store, target, source, other=other, layers=layer or ["*"])
    if as_json:
        typer.echo(
            json.dumps([{"layer": name, "features": shift_facts(shift, top)} for name, shift in shifts], indent=1)
        )
        return
    for name, shift in shifts:
        console.print(shift_table(name, shift, sides, top))
