"""The files that a saved network lies in, by their names: one of weights, or several with their index."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

WEIGHTS, PLAN, README = "model.safetensors", "plan.json", "README.md"
INDEX = f"{WEIGHTS}.index.json"
_STEM, _ENDING = WEIGHTS.split(".")
_SHARD = re.compile(rf"{_STEM}-\d+-of-\d+\.{_ENDING}")


def shard_name(number: int, count: int) -> str:
    """Return what the shard `number`, from 1 on, of `count` is called, as transformers calls it."""
    return f"{_STEM}-{number:05d}-of-{count:05d}.{_ENDING}"


def is_of_weights(name: str) -> bool:
    """Tell whether a file of a saved network holds weights, or says where they are."""
    return name in (WEIGHTS, INDEX) or _SHARD.fullmatch(name) is not None


def weights_file(path: Path) -> Path:
    """Return the file that stands for the weights at `path`: in a folder `model.safetensors` or its index."""
    if not path.is_dir():
        return path
    return path / INDEX if (path / INDEX).exists() else path / WEIGHTS


def weights_files(path: Path) -> list[Path]:
    """Return every file that weights at `path` lie in, and the index where there are several."""
    head = weights_file(path)
    return [head, *sorted(path.glob(f"{_STEM}-*.{_ENDING}"))] if head.name == INDEX else [head]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
