"""Files of packages that ship networks and pictures: packages are looked up, not imported; weights read as tensors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from dalr_stream.errors import ConfigError


def file_of(package: str, name: str, *, install: str) -> Path:
    """Return a file in a package's folder; raises ConfigError where it is not there, with what pip is to install."""
    found = importlib.util.find_spec(package)
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    if folder is None or not (folder / name).exists():
        raise ConfigError(f"'{name}' of the package '{package}' is not there: pip install {install}")
    return folder / name


def tensors_of(package: str, name: str, *, install: str) -> dict[str, Any]:
    """Return the tensors of a file that torch saved; nothing in it is executed."""
    state: dict[str, Any] = torch.load(file_of(package, name, install=install), map_location="cpu", weights_only=True)
    return state
