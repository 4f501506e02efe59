"""What goes into a run file before it is validated: values from the command line, and options that factories share."""

from __future__ import annotations

import tomllib
from typing import Any

from dalr_stream.errors import ConfigError


def share_options(plain: dict[str, Any]) -> None:
    """Hand the table [options] to every factory of the run file; what a section says itself comes first."""
    shared = plain.pop("options", {})
    if not isinstance(shared, dict):
        raise ConfigError(f"options: must be a table of what every factory is given, got {shared!r}")
    domains = plain.get("domains")
    sections = [plain.get(name) for name in ("network", "finetune", "evaluate", "validation")]
    for section in [*sections, *(domains.values() if isinstance(domains, dict) else [])]:
        for key in ("options", "train_options"):
            has_factory = isinstance(section, dict) and (key == "options" or "train" in section)
            if shared and has_factory and isinstance(section.setdefault(key, {}), dict):
                section[key] = {**shared, **section[key]}


def apply(plain: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into a run file; raises ConfigError where it does not read like that.

    A key with dots of its own is in quotes, as in the file: `compress."classifier.0"={ method = "svd", size = 8 }`.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set: must read like solve.ridge=1e-3, got '{override}'")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = _path(key)
    for section in sections:
        plain = plain.setdefault(section, {})
        if not isinstance(plain, dict):
            raise ConfigError(f"--set: '{section}' in '{key}' is not a section")
    plain[last] = value


def _path(key: str) -> list[str]:
    """Return the names that lead to a key: as TOML reads them, or, where it reads none, those between the dots."""
    try:
        nested: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return key.strip().split(".")
    path: list[str] = []
    while isinstance(nested, dict):
        ((name, nested),) = nested.items()
        path.append(name)
    return path
