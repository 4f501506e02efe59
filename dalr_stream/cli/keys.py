"""The verb that explains the run file: every section and key, from the classes that validate it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dalr_stream.cli.console import console_for
from dalr_stream.cli.options import AsJson

if TYPE_CHECKING:
    from dalr_stream.workflow.runfile.keys import SectionKeys

WIDEST = 100
"""Columns, where the terminal has more."""


def keys(
    section: Annotated[
        str | None, typer.Argument(metavar="SECTION", help="One section, e.g. capture.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every key of a run file: type, default, meaning."""
    from dalr_stream.workflow.runfile.keys import sections

    found = sections(section)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    console = console_for()
    width = min(console.width, WIDEST)
    for one in found:
        for line in _lines(one, width):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _lines(section: SectionKeys, width: int) -> Iterator[str]:
    yield f"[{section.name}]" + ("" if not section.required else "    required")
    yield textwrap.fill(section.meaning, width)
    yield ""
    for key in section.keys:
        yield f"  {key.name}: {key.type}, {key.default}"
        yield textwrap.fill(key.meaning, width, initial_indent="      ", subsequent_indent="      ")
    yield ""
