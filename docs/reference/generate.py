"""Writes the pages of this folder that are made from the code itself, and the notebook that is made from a tutorial.

A test says when they are out of date.

python docs/reference/generate.py
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dalr_stream import errors
from dalr_stream._front import public_names
from dalr_stream.cli.app import app
from dalr_stream.workflow.runfile.keys import sections

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MADE = "<!-- Made by docs/reference/generate.py: do not edit. -->"


def run_file() -> Iterator[str]:
    """Yield the lines of the page of every run-file key."""
    yield "# The run file"
    yield ""
    yield MADE
    yield ""
    yield (
        "A run file is TOML. Unknown keys are refused, with the nearest known one. `dalr-stream keys [SECTION]` prints "
        "this page; `--set section.key=value` replaces a key for one command. Paths are relative to the run file. A "
        "top-level table `[options]` is handed to every function that the run file names."
    )
    for section in sections():
        yield ""
        yield f"## `[{section.name}]`" + (" (required)" if section.required else "")
        yield ""
        yield section.meaning
        yield ""
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        for key in section.keys:
            default = key.default if key.default in {"required", "not set", "all of them"} else f"`{key.default}`"
            yield f"| `{key.name}` | {_cell(key.type)} | {default} | {_cell(key.meaning)} |"


def error_classes() -> Iterator[str]:
    """Yield the lines of the page of errors and warnings."""
    yield "# Errors and warnings"
    yield ""
    yield MADE
    yield ""
    yield (
        "Every failure that the package raises on purpose is a `DalrStreamError`. The command line prints its message "
        "alone, with exit code 1. A message names the layer, the rule, the value received and the remedy."
    )
    yield ""
    yield "| class | also a | when |"
    yield "|---|---|---|"
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, Exception):
            parents = ", ".join(f"`{parent.__name__}`" for parent in kind.__bases__)
            yield f"| `{name}` | {parents} | {_cell(inspect.getdoc(kind) or '')} |"


def command_line() -> Iterator[str]:
    """Yield the lines of the page of verbs and options."""
    yield "# The command line"
    yield ""
    yield MADE
    yield ""
    yield (
        "`dalr-stream --help` lists the verbs, `dalr-stream VERB --help` explains one. "
        "`dalr-stream --install-completion` lets your shell complete verbs and options. Results go to standard output, "
        "progress to standard error; `--json` prints results for other programs, `--quiet` keeps warnings and errors "
        "alone. A verb first does the steps that it needs and that are out of date, skips the others, and resumes "
        "where an earlier command was stopped."
    )
    verbs: Any = typer.main.get_command(app)
    for name in verbs.list_commands(None):
        command = verbs.commands[name]
        context = command.make_context(f"dalr-stream {name}", [], resilient_parsing=True, terminal_width=200)
        yield ""
        yield f"## `dalr-stream {name}`"
        yield ""
        yield inspect.cleandoc(command.help or "")
        yield ""
        yield f"    {command.get_usage(context).removeprefix('Usage: ').strip()}"
        yield ""
        records = [_option(parameter, context) for parameter in command.get_params(context)]
        shown = [record for record in records if record is not None and record[0] != "--help"]
        if shown:
            yield "| option | meaning |"
            yield "|---|---|"
            yield from (f"| `{option}` | {_cell(meaning)} |" for option, meaning in shown)


def _option(parameter: Any, context: Any) -> tuple[str, str] | None:
    record: tuple[str, str] | None = parameter.get_help_record(context)
    return None if record is None else (" ".join(record[0].split()), " ".join(record[1].split()))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def python() -> Iterator[str]:
    """Yield the lines of the page of public names; mkdocstrings fills in their docstrings."""
    yield "# Python"
    yield ""
    yield MADE
    yield ""
    yield "`import dalr_stream as ds`. What is not listed here is not public; `help(ds.accumulate)` shows the same."
    for package in ("dalr_stream", "dalr_stream.numerics", "dalr_stream.network"):
        yield ""
        yield f"## `{package}`"
        for name, home in public_names(ROOT / package.replace(".", "/") / "__init__.pyi").items():
            if home != package and not name.startswith("_"):
                yield ""
                yield f"::: {home}.{name}"
                yield "    options:"
                yield "      heading_level: 3"


TUTORIAL = HERE.parent / "tutorials" / "first-network.md"


def notebook(page: Path = TUTORIAL) -> str:
    """Return a page as a notebook: its text and its Python blocks, as cells without outputs."""
    parts = re.split(r"```python\n(.*?)```\n", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if not (text := part.strip("\n")):
            continue
        cell = {"id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if number % 2:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        else:
            cell["cell_type"] = "markdown"
        cells.append(dict(sorted(cell.items())))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


PAGES = {"python.md": python, "run-file.md": run_file, "errors.md": error_classes, "command-line.md": command_line}


def page(name: str) -> str:
    """Return what a page should be."""
    return "\n".join(PAGES[name]()) + "\n"


def main() -> None:
    """Write the pages."""
    for name in PAGES:
        (HERE / name).write_text(page(name), encoding="utf-8")
    TUTORIAL.with_suffix(".ipynb").write_text(notebook(), encoding="utf-8")


if __name__ == "__main__":
    main()
