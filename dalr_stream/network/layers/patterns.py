r"""Patterns of layers: a module's name, a glob, a regular expression over names (`re:fc\d`), or a module class."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable

from torch import nn

from dalr_stream.errors import LayerNotFoundError

Pattern = str | type[nn.Module]


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a name, a glob or a `re:` pattern matches; raises LayerNotFoundError where none does."""
    names = list(names)
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise LayerNotFoundError(f"pattern '{pattern}' is not a regular expression: {error}") from None
        matched = [name for name in names if expression.fullmatch(name)]
    else:
        matched = [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        raise LayerNotFoundError(f"pattern '{pattern}' matches no layer; nearest: {nearest(pattern, names)}")
    return matched


def nearest(name: str, names: list[str]) -> str:
    """Return the names most like `name`, for a message."""
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:5])


def listed(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Return one pattern, or several, as a list."""
    return [patterns] if isinstance(patterns, str | type) else list(patterns)


def matches(pattern: Pattern, modules: dict[str, nn.Module]) -> list[str]:
    """Return the names of the modules that a pattern matches; raises LayerNotFoundError where none does."""
    if isinstance(pattern, str):
        return match_names(pattern, modules)
    matched = [name for name, module in modules.items() if isinstance(module, pattern)]
    if not matched:
        kinds = sorted({type(module).__name__ for module in modules.values()})
        raise LayerNotFoundError(f"no module is a {pattern.__name__}: the network has {', '.join(kinds)}")
    return matched
