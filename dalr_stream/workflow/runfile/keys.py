"""Every key of a run file, from the configuration's own classes: section, name, type, default, meaning.

The classes are the one source: validation, `dalr-stream keys` and the reference page read the same fields, and the
string under a field is its meaning. Types come from pydantic's JSON schema; where a value is written in a way of its
own (`25%`, `8GiB`), the field says so in words, `json_schema_extra={"in_words": ...}`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dalr_stream.errors import ConfigError
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.values import PATTERNS

Schema = Mapping[str, Any]
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "table"}
PLURALS = {"text": "texts", "whole number": "whole numbers", "path": "paths", "a method": "methods"}
REQUIRED, LEFT_OUT = "required", "not set"
LAYER, NAME = "compress.LAYER", "NAME"
"""A table for each layer or pattern that [compress] names, and for each domain."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a run file."""

    section: str
    """Its table as a run file writes it, e.g. `network` or `domains.NAME`."""
    name: str
    type: str
    """In words."""
    default: str
    """As JSON; `required` where there must be a value, `not set` where leaving it out is a choice of its own."""
    meaning: str


@dataclass(frozen=True, slots=True)
class SectionKeys:
    """One table of a run file."""

    name: str
    meaning: str
    required: bool
    keys: tuple[Key, ...]


def sections(named: str | None = None) -> list[SectionKeys]:
    """Return every section of a run file with its keys, in order; or the one that is named, with its tables.

    Raises ConfigError for an unknown section, with the nearest name.
    """
    every = list(_every_section())
    if named is None:
        return every
    known = list(dict.fromkeys(section.name.partition(".")[0] for section in every))
    wanted = named.strip("[]").partition(".")[0]
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 1, cutoff=0.0)
        raise ConfigError(f"there is no section [{wanted}] in a run file; nearest: [{near[0]}]")
    return [section for section in every if section.name.partition(".")[0] == wanted]


def _every_section() -> Iterator[SectionKeys]:
    schema = RunConfig.model_json_schema()
    tables: Schema = schema["$defs"]
    for name, field in schema["properties"].items():
        several = "additionalProperties" in field
        table = _named(field["additionalProperties"] if several else field)
        required = name in schema["required"]
        yield _section(f"{name}.{NAME}" if several else name, tables[table], tables, required=required)
        if name == LAYER.partition(".")[0]:
            yield _section(LAYER, tables["ChoiceSection"], tables, required=False)


def _section(name: str, table: Schema, tables: Schema, *, required: bool) -> SectionKeys:
    needed = table.get("required", ())
    keys = tuple(
        Key(
            name,
            key,
            _type(field, tables),
            _default(field, required=key in needed),
            _meaning(field),
        )
        for key, field in table["properties"].items()
    )
    return SectionKeys(name, _meaning(table), required, keys)


def _type(field: Schema, tables: Schema) -> str:
    if "in_words" in field:
        return str(field["in_words"])
    if "anyOf" in field:
        parts = [_type(part, tables) for part in field["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "$ref" in field:
        values = tables[_named(field)].get("enum", ())
        return "a method" if list(values) == list(Method) else " or ".join(f'"{value}"' for value in values)
    if "pattern" in field:
        return PATTERNS[field["pattern"]].removeprefix("must read like ").removeprefix("must be ")
    if field.get("type") == "array":
        return f"list of {PLURALS[_type(field['items'], tables)]}"
    return "path" if field.get("format") == "path" else WORDS[field["type"]]


def _default(field: Schema, *, required: bool) -> str:
    if required:
        return REQUIRED
    value = field.get("default")
    if value is None:
        return LEFT_OUT
    plain = [method.value for method in Method if not method.weighted and method.family is not Family.HEADS]
    return "all but heads and the weighted ones" if value == plain else json.dumps(value)


def _named(field: Schema) -> str:
    """Return the name of the table that a field refers to."""
    found: Schema = next((part for part in field.get("anyOf", ()) if "$ref" in part), field)
    return str(found["$ref"]).rpartition("/")[2]


def _meaning(described: Schema) -> str:
    return " ".join(described.get("description", "").split())
