"""Finds the Python a run file names: `module:function`, looked up beside the run file first, then in `../shared`.

`shared`, a folder beside the run file's, holds what several run files have in common. Only names that the user wrote
into the run file are imported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dalr_stream.errors import ConfigError

SHARED = "shared"
"""Folder beside the run file's, in which several run files' Python is looked for."""


def places(folder: Path) -> tuple[Path, Path]:
    """Return where the Python of a run file in `folder` is looked for, in this order."""
    return folder.resolve(), folder.resolve().parent / SHARED


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Put the run file's folder, and the shared one, on the import path for the length of the block."""
    entries = [str(place) for place in places(folder)]
    sys.path[:0] = entries
    try:
        yield
    finally:
        for entry in entries:
            sys.path.remove(entry)


def resolve(name: str, key: str, folder: Path) -> Callable[..., Any]:
    """Return the function `module:function`, beside the run file in `folder` first; `key` is the run file's key.

    Raises ConfigError where there is none, or where another module of that name was imported before in this process.
    """
    module_name, _, function_name = name.partition(":")
    try:
        with importing_from(folder):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(f"{key}: there is no module '{module_name}' beside the run file or installed") from None
    files = [place / f"{module_name.replace('.', '/')}.py" for place in places(folder)]
    beside = next((path for path in files if path.exists()), None)
    if beside is not None and Path(module.__file__ or "").resolve() != beside.resolve():
        raise ConfigError(
            f"{key}: '{module_name}' beside the run file is hidden by '{module.__file__}', which was imported before: "
            "rename one of them, or use a new process"
        )
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{key}: module '{module_name}' has no function '{function_name}'")
    return function  # type: ignore[no-any-return]


def require_takes(function: Callable[..., Any], name: str, key: str, *places: str, **options: Any) -> None:
    """Raise ConfigError where a function of the run file does not take what it would be called with."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, it has none: the call itself will tell
        return
    try:
        signature.bind(*places, **options)
    except TypeError as error:
        taken = ", ".join(f"'{parameter}'" for parameter in signature.parameters) or "nothing"
        strange = [f"'{option}'" for option in options if option not in signature.parameters]
        what = f"takes no {' and no '.join(strange)}" if strange else f"does not fit ({error})"
        raise ConfigError(f"{key}: '{name}' {what}; it takes {taken}") from None


def code_digest(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 of the Python beside the run file that `module:function` names reach: when it changes, its work is stale.

    Imports are followed within the folder and the shared one, by reading them, not by running them. Installed packages
    do not count.
    """
    pending = [name.partition(":")[0].partition(".")[0] for name in names]
    files: dict[str, bytes] = {}
    while pending:
        module = pending.pop()
        for place in places(folder):
            files_here = {path.relative_to(place).as_posix(): path for path in _files_of(place, module)}
            for key in files_here.keys() - files.keys():
                files[key] = files_here[key].read_bytes()
                pending += _imported_by(files[key])
            if files_here:
                break
    digest = hashlib.sha256()
    for key, code in sorted(files.items()):
        digest.update(f"{key}:{len(code)}:".encode() + code)
    return digest.hexdigest()


def _files_of(folder: Path, module: str) -> list[Path]:
    """Return the files of a module or a package in `folder`; none where it is installed elsewhere."""
    single = folder / f"{module}.py"
    return [single] if single.exists() else sorted((folder / module).rglob("*.py"))


def _imported_by(code: bytes) -> Iterator[str]:
    """Yield the top-level names of the modules that a file imports; a file that is no Python imports nothing."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
