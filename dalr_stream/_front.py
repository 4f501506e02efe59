"""The public names of a package, listed once: in the stub beside its `__init__.py`, and loaded when first used.

A line `from dalr_stream.engine.solve import solve as solve` of `__init__.pyi` is a public name and the module it comes
from. Type checkers and editors read the stub as it stands; at run time the package reads it too, so that importing a
package imports nothing of what it lists. The stub is installed with the package.
"""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Renamed(NamedTuple):
    """A public name of 0.1 that is another one now; it works until 0.3, and says what to write."""

    use: str
    """What to write in its place."""
    home: str
    """The module that has what it was."""
    name: str
    """What that is called there."""


def public_names(stub: Path) -> dict[str, str]:
    """Return the public names that a stub lists, each with the module that it comes from."""
    imports = [node for node in ast.parse(stub.read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names if alias.asname == alias.name}


def attach(
    package: str, file: str, renamed: Mapping[str, Renamed] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package, from the stub beside its `__init__.py`."""
    homes, earlier = public_names(Path(file).with_suffix(".pyi")), renamed or {}

    def get(name: str) -> Any:
        if name in earlier:
            use, home, now = earlier[name]
            message = f"{package}.{name} is now {use}; the old name works until 0.3"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return getattr(importlib.import_module(home), now)
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = homes[name]
        value = (
            importlib.import_module(f"{package}.{name}")
            if home == package
            else getattr(importlib.import_module(home), name)
        )
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes), sorted(homes)
