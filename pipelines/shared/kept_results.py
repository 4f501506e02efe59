"""Figures and weights that experiments keep below `runs/`, each under a name that says what it was made from.

The name holds a digest of the settings and of the code: the Python behind the experiment's functions, followed through
its imports as far as this folder of pipelines and the package `dalr_stream` go. Changed settings or code are another
name, so nothing made otherwise is ever read; what was made before stays beside it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import dalr_stream
from dalr_stream.network import load_weights, save_weights

PIPELINES = Path(__file__).resolve().parents[1]
PACKAGE = Path(dalr_stream.__file__).resolve().parent
SHOWN = 16
"""Hexadecimal digits of a digest in a name."""


def digest_of(settings: Mapping[str, Any], *functions: Callable[..., Any]) -> str:
    """Return the digest of settings, which JSON must be able to write, and of the code of functions."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    found: dict[Path, None] = {}
    for function in functions:
        _follow(function.__module__, found)
    for file in sorted(found):
        content = file.read_bytes()
        digest.update(f"{file.name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:SHOWN]


def kept_figures(folder: Path, digest: str, measure: Callable[[], Any]) -> Any:
    """Return what `measure` gives, as JSON keeps it: read where it was measured from the same."""
    file = folder / f"figures-{digest}.json"
    if not file.exists():
        _write(file, json.dumps(measure(), indent=1) + "\n")
    return json.loads(file.read_text())


def kept_weights(folder: Path, digest: str, networks: Mapping[str, nn.Module], train: Callable[[], None]) -> None:
    """Fill networks by name: read where they were trained from the same, else by `train`, which fills them in place."""
    files = {name: folder / f"{name}-{digest}.safetensors" for name in networks}
    if all(file.exists() for file in files.values()):
        for name, file in files.items():
            load_weights(networks[name], file)
        return
    train()
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        save_weights(networks[name], file)


def _write(file: Path, content: str) -> None:
    """Write whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(content)
    part.replace(file)


def _follow(module: str, found: dict[Path, None]) -> None:
    """Add the files of a module that was imported, and of all that it imports, where they are ours."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None:
        return
    file = Path(path).resolve()
    if file.is_relative_to(PACKAGE):
        found |= dict.fromkeys(PACKAGE.rglob("*.py"))
    elif file.is_relative_to(PIPELINES) and file not in found:
        found[file] = None
        for name in _imported(file):
            _follow(name, found)


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
