"""The verb that writes a first run file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.", show_default=False)],
    from_transformers: Annotated[
        Path | None,
        typer.Option("--from-transformers", metavar="DIR", help="A model that save_pretrained of transformers wrote."),
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Read its weights a block at a time: it may be larger than memory.")
    ] = False,
) -> None:
    """Write a first run file and Python that run as they are."""
    from dalr_stream.workflow.starter import write_starter

    run_file, *python = write_starter(folder, from_transformers, blocks=blocks)
    typer.echo(f"Wrote {run_file} and, for your network and data, {' and '.join(map(str, python))}.")
    typer.echo(f"Try it:  dalr-stream run {shlex.quote(str(run_file))}")
