"""Turns mistakes in a run file into one line that names the key, the rule and the value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dalr_stream.errors import ConfigError
from dalr_stream.workflow.runfile.compress_section import ChoiceSection
from dalr_stream.workflow.runfile.sections import DataSection
from dalr_stream.workflow.runfile.values import PATTERNS

_RULES = {
    "tuple_type": 'must be a list, e.g. ["0"]',
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_type": "must be text in quotes",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}
"""What the most common mistakes break, by pydantic's names for them."""
_NOW_IN_ACCUMULATE = (
    "heldout_share",
    "shards",
    "memory_limit",
    "threads",
    "workers",
    "scheduler",
    "precision",
    "device",
)
"""Keys that [capture] had until 0.1."""


def require_current_keys(file: Path, plain: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the key of today, where a run file or an override has a key of 0.1."""
    capture = plain.get("capture")
    if not isinstance(capture, dict):
        return
    if "direct" in capture:
        keep = "false" if capture["direct"] is True else "true"
        raise ConfigError(f"'{file}': 'capture.direct' is now 'capture.keep_activations': set it to {keep}")
    for key in _NOW_IN_ACCUMULATE:
        if key in capture:
            raise ConfigError(f"'{file}': 'capture.{key}' is now 'accumulate.{key}': move it to [accumulate]")


def explain(error: ValidationError, whole: type[BaseModel]) -> str:
    """Return the first problem in one line; `whole` is the model of the run file.

    A key that is unknown comes before one that is missing: it may be the same, misspelt.
    """
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    loc = problem["loc"]
    place = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden" or (problem["type"] == "model_type" and loc[0] == "compress"):
        return _unknown(place, loc, whole)
    if problem["type"] == "missing":
        return f"'{place}' is missing"
    if problem["type"] == "value_error" or not place:
        message = problem["msg"].removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    return f"{place}: {_rule(problem)}, got {problem['input']!r}"


def _unknown(place: str, loc: Sequence[int | str], whole: type[BaseModel]) -> str:
    near = difflib.get_close_matches(str(loc[-1]), _known_keys(loc[:-1], whole), n=1, cutoff=0.0)
    layer = " (a layer is a table with 'method' and 'size')" if loc == ("compress", loc[-1]) else ""
    return f"unknown key '{place}'; nearest: '{near[0]}'{layer}" if near else f"unknown key '{place}'"


def _rule(problem: Mapping[str, Any]) -> str:
    """Return the rule that a value breaks."""
    if problem["type"] == "string_pattern_mismatch":
        return PATTERNS[problem["ctx"]["pattern"]]
    if problem["type"] == "enum":
        return f"must be {_nearest_first(str(problem['input']), problem['ctx']['expected'])}"
    message = str(problem["msg"]).replace("Input should be", "must be")
    return _RULES.get(problem["type"], message[0].lower() + message[1:])


def _nearest_first(given: str, expected: str) -> str:
    """Return the names that may be given, the one most like what was given first."""
    names = re.findall("'([^']+)'", expected)
    names.sort(key=lambda name: difflib.SequenceMatcher(None, given, name).ratio(), reverse=True)
    *most, last = (f"'{name}'" for name in names)
    return f"{', '.join(most)} or {last}" if most else last


def _known_keys(place: Sequence[int | str], whole: type[BaseModel]) -> list[str]:
    """Return the keys a section may have; sections of free names are walked through."""
    section = whole
    free: Mapping[str, type[BaseModel]] = {"domains": DataSection, "compress": ChoiceSection}
    for part in place:
        if part in free and len(place) > 1:
            section = free[str(part)]
        elif str(part) in section.model_fields:
            annotation = section.model_fields[str(part)].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            section = next(
                (kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), section
            )
    return list(section.model_fields)
