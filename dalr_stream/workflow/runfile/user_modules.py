"""The Python beside a run file: which modules the run file's names reach, and how they, and no others, are imported.

A run file names functions as `module:function`. Modules are looked for beside it first, then in the folders that
`run.import_from` names. What those modules import from the same folders is found by reading them, not by running them.
While the run file's Python runs, exactly these modules can be imported from there: the folders stand *last* on the
import path, and anything else in them stays out of reach, so a `triton.py` or `statistics.py` that lies there by chance
is never executed for a library that asks for one. A module of the run file's own that has the name of an installed one
is refused, as a library would then get either.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from dalr_stream.errors import ConfigError


class UserModules:
    """The modules of one run file."""

    def __init__(self, folder: Path, import_from: Sequence[Path] = (), names: Iterable[str] = ()) -> None:
        """`folder` is the run file's, `import_from` relative to it, `names` every `module:function` in it."""
        self.folders = tuple(dict.fromkeys(path.resolve() for path in (folder, *(folder / one for one in import_from))))
        self._names = tuple(names)

    def resolve(self, name: str, key: str) -> Callable[..., Any]:
        """Return the function `module:function`; `key` is the run file's key, for the message.

        Raises ConfigError where there is none, or where another module of that name was imported before.
        """
        module_name, _, function_name = name.partition(":")
        try:
            with self.importing(module_name):
                module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            raise ConfigError(f"{key}: there is no module '{module_name}' beside the run file or installed") from None
        files = [place / f"{module_name.replace('.', '/')}.py" for place in self.folders]
        beside = next((path for path in files if path.exists()), None)
        if beside is not None and Path(module.__file__ or "").resolve() != beside.resolve():
            raise ConfigError(
                f"{key}: '{module_name}' beside the run file is hidden by '{module.__file__}', which was imported "
                "before: rename one of them, or use a new process"
            )
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ConfigError(f"{key}: module '{module_name}' has no function '{function_name}'")
        return function  # type: ignore[no-any-return]

    @contextmanager
    def importing(self, *names: str) -> Iterator[None]:
        """Make the run file's own modules, and those that `names` reach, importable for the length of the block.

        Processes that are started in the block import from the same folders.
        """
        reached = {**self._own, **self._reached(names)}
        self._require_own_names(reached)
        with ExitStack() as stack:
            for place in self.folders:
                stack.enter_context(_last_on_the_path(place, reached))
            yield

    def digest(self, names: Iterable[str]) -> str:
        """SHA-256 of the Python that `module:function` names reach: when it changes, its work is stale.

        Installed packages do not count.
        """
        files = {key: path for paths in self._reached(names).values() for key, path in paths.items()}
        digest = hashlib.sha256()
        for key, path in sorted(files.items()):
            code = path.read_bytes()
            digest.update(f"{key}:{len(code)}:".encode() + code)
        return digest.hexdigest()

    @cached_property
    def _own(self) -> dict[str, dict[str, Path]]:
        return self._reached(self._names)

    def _reached(self, names: Iterable[str]) -> dict[str, dict[str, Path]]:
        """Return the files of each module in the folders that the names reach, by their place in its folder."""
        pending = [name.partition(":")[0].partition(".")[0] for name in names]
        reached: dict[str, dict[str, Path]] = {}
        while pending:
            module = pending.pop()
            if module in reached:
                continue
            files = next(filter(None, (_files_of(place, module) for place in self.folders)), None)
            if files is not None:
                reached[module] = files
                pending += [name for path in files.values() for name in _imported_by(path.read_bytes())]
        return reached

    def _require_own_names(self, modules: Iterable[str]) -> None:
        """Raise ConfigError for a module of the run file's that has the name of another one that may be imported."""
        elsewhere = [entry for entry in sys.path if Path(entry).resolve() not in self.folders]
        for module in modules:
            spec = PathFinder.find_spec(module, elsewhere)
            known = module in sys.stdlib_module_names or (spec is not None and spec.origin is not None)
            if known:
                where = "Python's own" if spec is None else f"'{spec.origin}'"
                raise ConfigError(
                    f"'{module}' beside the run file has the name of a module that is installed ({where}): rename it"
                )


@contextmanager
def _last_on_the_path(folder: Path, modules: Mapping[str, Mapping[str, Path]]) -> Iterator[None]:
    """Append a folder to the import path, of which only `modules` are found; one that stands there stays as it is."""
    entry = str(folder)
    before = sys.path_importer_cache.get(entry)
    added = entry not in sys.path
    if not added and not isinstance(before, _OnlyThese):
        yield
        return
    if added:
        sys.path.append(entry)
    sys.path_importer_cache[entry] = _OnlyThese(folder, modules)
    try:
        yield
    finally:
        if added:
            sys.path.remove(entry)
        if before is None:
            del sys.path_importer_cache[entry]
        else:
            sys.path_importer_cache[entry] = before


class _OnlyThese:
    """Finds the modules of one folder that a run file reaches; the path entry finder of that folder."""

    def __init__(self, folder: Path, modules: Mapping[str, Mapping[str, Path]]) -> None:
        self._folder = folder
        self._modules = modules

    def find_spec(self, name: str, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002  # protocol
        """Return the module's file; None where the run file does not reach it, or not here."""
        files = self._modules.get(name, {})
        for key in (f"{name}.py", f"{name}/__init__.py"):
            if files.get(key) == self._folder / key:
                return spec_from_file_location(name, files[key])
        package = self._folder / name
        if not any(path.is_relative_to(package) for path in files.values()):
            return None
        spec = ModuleSpec(name, None, is_package=True)  # a folder of modules without __init__.py
        spec.submodule_search_locations = [str(package)]
        return spec

    def invalidate_caches(self) -> None:
        """Forget nothing: nothing is remembered."""


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


def _files_of(folder: Path, module: str) -> dict[str, Path]:
    """Return the files of a module or a package by their place in `folder`; none where it is not there."""
    single = folder / f"{module}.py"
    paths = [single] if single.exists() else sorted((folder / module).rglob("*.py"))
    return {path.relative_to(folder).as_posix(): path for path in paths}


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
