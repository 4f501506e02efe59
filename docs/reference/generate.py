"""Writes the pages of this folder that are made from the code itself, and the notebook that is made from a tutorial.

A test says when they are out of date.

python docs/reference/generate.py
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import typer

from dalr_stream import errors
from dalr_stream._front import public_names
from dalr_stream.cli.app import app
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.statistics.channels import ChannelReader, ChannelSpan
from dalr_stream.storage import contents, schema
from dalr_stream.storage.batches import BatchRecord
from dalr_stream.workflow.results.report import REPORT
from dalr_stream.workflow.runfile.keys import sections
from dalr_stream.workflow.steps.blocks.sweep import SWEPT
from dalr_stream.workflow.steps.evaluate import EVALUATION
from dalr_stream.workflow.steps.finetune import FINETUNING
from dalr_stream.workflow.steps.profile import PROFILE
from dalr_stream.workflow.steps.sizes.compression import COMPRESSION
from dalr_stream.workflow.steps.solving.stability import STABILITY
from dalr_stream.workflow.steps.step_log import LOG
from dalr_stream.workflow.steps.train import WEIGHTS

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
        usage = command.get_usage(context).removeprefix("Usage: ").strip()
        yield f"    {re.sub(r'[{](.+?)[}]', lambda named: named[1], usage)}"
        yield ""
        records = [_option(parameter, context) for parameter in command.get_params(context)]
        shown = [record for record in records if record is not None and record[0] != "--help"]
        if shown:
            yield "| option | meaning |"
            yield "|---|---|"
            yield from (f"| `{option}` | {_cell(meaning)} |" for option, meaning in shown)


def _option(parameter: Any, context: Any) -> tuple[str, str] | None:
    record: tuple[str, str] | None = parameter.get_help_record(context)
    if record is None:
        return None
    name = re.sub(r" <\w+>$", "", " ".join(record[0].split()))
    return name, " ".join(record[1].split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def python() -> Iterator[str]:
    """Yield the lines of the page of public names; mkdocstrings fills in their docstrings."""
    yield "# Python"
    yield ""
    yield MADE
    yield ""
    yield (
        "`import dalr_stream as ds`. What is not listed here is not public; `help(ds.accumulate)` shows the same. "
        "Functions come first, then classes, by name."
    )
    for package in ("dalr_stream", "dalr_stream.numerics", "dalr_stream.network"):
        yield ""
        yield f"## `{package}`"
        names = public_names(ROOT / package.replace(".", "/") / "__init__.pyi")
        for name in sorted(names, key=lambda name: (name[0].isupper(), name)):
            if names[name] != package and not name.startswith("_"):
                yield ""
                yield f"::: {names[name]}.{name}"
                yield "    options:"
                yield "      heading_level: 3"
                yield f"      heading: {package.replace('dalr_stream', 'ds')}.{name}"


MANIFEST = {
    "network": contents.NetworkRecord,
    "a layer (`network.layers`)": contents.LayerRecord,
    "who reads its channels (`readers`)": ChannelReader,
    "where (`span`)": ChannelSpan,
    "a probe (`network.probes`)": Probe,
    "a domain (`domains`)": contents.DomainRecord,
    "its batches, in columns": BatchRecord,
    "rows of a layer (`domains.<domain>.layers`)": contents.RowsRecord,
}
"""The records of a manifest, from outside in."""
RUN_FOLDER = (
    ("network.safetensors", "train", "the trained network's weights, where `network.train` is set", None),
    ("network.json", "train", "their SHA-256", WEIGHTS),
    ("store.zarr/", "capture, accumulate, solve", "the store", None),
    ("cross.zarr/", "accumulate", "moments of two networks, where `accumulate.cross` is set; a store like any", None),
    ("stability.json", "solve", "error bars, where moments are kept in shards", STABILITY),
    ("compression.json", "compress", "the sizes, how they were chosen, and what was tried", COMPRESSION),
    ("layers.json", "compress", "the curves of every layer, where `accumulate.keep_moments` is false", SWEPT),
    ("compressed/", "compress", "the saved network", None),
    ("compressed.unfinished/", "compress", "its shards so far, block by block; gone when the step is done", None),
    ("measuring/", "compress", "what blocks give of candidates, and their scores; gone when the step is done", None),
    ("sequence/", "compress", "layers that are finished, in the order `sequential`", None),
    ("passes/", "compress", "the cross moments of each pass in that order, a store each", None),
    ("sizes/", "compress --params A,B", "`sizes.json`, `.csv`, `.png`; `scores.json`; a folder for each budget", None),
    ("finetuned/", "finetune", "the fine-tuned network", None),
    ("finetuning.json", "finetune", "losses by epoch", FINETUNING),
    ("unfinished/", "finetune, evaluate", "checkpoints of training, scores so far; gone when the step is done", None),
    ("evaluation.json", "evaluate", "every score", EVALUATION),
    (
        "report/",
        "report",
        "`report.html`, `figures/`, `tables/`, `results.json`, and `files.txt`, which lists them",
        None,
    ),
    ("report.json", "report", "digests of the report's files", REPORT),
    ("profile.json", "profile", "timings", PROFILE),
    ("steps.json", "every step", "what each step was made from, and digests of what it left", LOG),
    ("log.jsonl", "every command", "progress and notes, one JSON object per line", None),
    ("run.lock", "every command", "held while a command works here", None),
)
"""What lies in a run's folder: name, verb, meaning, and the kind of a small record."""


def store_format() -> Iterator[str]:
    """Yield the lines of the page of everything on disk, which stands in `store-format.txt` less its tables."""
    tables = {
        "arrays": _arrays(),
        "seals": (f"| `{name}` | {_cell(meaning)} |" for name, meaning in schema.SEALS.items()),
        "manifest": _manifest(),
        "run": (
            f"| `{name}` | {verb} | {_cell(meaning)} | {'' if kind is None else f'{kind.name}, {kind.schema}'} |"
            for name, verb, meaning, kind in RUN_FOLDER
        ),
    }
    text = Template((HERE / "store-format.txt").read_text(encoding="utf-8"))
    lines = {name: "\n".join(table).strip("\n") for name, table in tables.items()}
    version, readable = schema.SCHEMA_VERSION, schema.READABLE[0]
    yield text.substitute(lines, made=MADE, version=version, readable=readable).rstrip("\n")


def _arrays() -> Iterator[str]:
    known: dict[tuple[schema.ArraySpec, ...], str] = {}
    path = ""
    for spec in schema.RECORDS:
        if spec.path != path:
            path = spec.path
            yield from ("", f"### `{path}`")
        meaning = f"{spec.meaning[0].upper()}{spec.meaning[1:]}. Written by: {spec.by}."
        if spec.arrays in known:
            yield from ("", f"{meaning} Arrays and attributes are those of `{known[spec.arrays]}`.")
            continue
        known[spec.arrays] = path
        yield from ("", meaning, "", "| array | dimensions | dtype | meaning |", "|---|---|---|---|")
        for array in spec.arrays:
            dimensions = ", ".join(array.dimensions).replace("<", "&lt;")
            yield f"| `{array.name}` | {dimensions} | {array.dtype} | {_cell(array.meaning)} |"
        if spec.values:
            yield ""
            yield "Attributes: " + "; ".join(f"`{name}`, {meaning}" for name, meaning in spec.values.items()) + "."


def _manifest() -> Iterator[str]:
    for name, kind in MANIFEST.items():
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0]
        yield from ("", f"### {name[0].upper()}{name[1:]}", "", _cell(summary), "", "| field | meaning |", "|---|---|")
        yield from (f"| `{field}` | {_cell(meaning)} |" for field, meaning in field_meanings(kind).items())


def field_meanings(kind: type) -> dict[str, str]:
    """Return what stands under each field of a record's class; empty where nothing does."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    meanings = {}
    for one, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            meanings[one.target.id] = text
    return meanings


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0]


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


PAGES = {
    "python.md": python,
    "run-file.md": run_file,
    "errors.md": error_classes,
    "command-line.md": command_line,
    "store-format.md": store_format,
}


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
